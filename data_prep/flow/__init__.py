"""Ways to estimate optical flow between neighbouring frames.

A method is one ``FlowMethod`` in a file of its own and one entry in ``FLOW_METHODS``.
"""

from __future__ import annotations

from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.flow.dis import DIS, FLOW_PRESETS

__all__ = ["FLOW_METHODS", "FLOW_PRESETS", "FlowFunction", "FlowMethod"]

FLOW_METHODS: dict[str, FlowMethod] = {"dis": DIS}
