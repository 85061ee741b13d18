"""Files, JSON records, the console, processes, the environment and command lines. Nothing here knows about video."""
