"""An encoder: a network of some library without its classifier, and the view that it takes.

Shapes: B batch, C channels, T frames, H height, W width, D features, N classes, E token features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from crossdistill.encoders.blocks import Block, find_blocks, pooled_outputs
from crossdistill.encoders.tokens import Grid, TokenLayer, arrange_tokens
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec
from crossdistill.utils.modules import eval_mode

Takes = Literal["clip", "frames"]
"""Input of a body: whole clips [B, C, T, H, W], or single frames [B, C, H, W]."""


@dataclass(frozen=True)
class PublicWeights:
    """Published weights of a network."""

    name: str
    """Their name for ``--teacher-weights``, for example ``kinetics400``."""
    modalities: tuple[str, ...]
    """Modalities of a teacher with them. A student may start from them in any modality, with an adapted stem."""
    url: str
    top1_percent: float | None = None
    """Published accuracy on the data that they are named after."""
    read: Callable[[], Mapping[str, Tensor]] | None = None
    """The library's function that reads them; None if they are one file at ``url``."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """Facts about a network that its weights do not hold."""

    embed_dim: int
    """D, the number of features."""
    takes: Takes = "clip"
    """Input of the body. Of a body of single frames, the features of a clip's frames are averaged."""
    stems: tuple[str, ...] = ()
    """Names of the first convolutions, one for each pathway."""
    classifier_prefix: str = ""
    """Prefix of the classifier's tensors in the library's own weights; they are not loaded into the body."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names of modules in other people's weight files to the names in the body."""
    token_layer: TokenLayer | None = None
    """The layer before pooling; None if the network has none."""
    blocks: tuple[str, ...] = ()
    """Modules whose outputs a ladder of heads uses besides the features; if empty they are found by a run."""
    frame_by_frame: Callable[[Any], Callable[[Tensor], Tensor]] | None = None
    """Makes of a body of clips a function of the next frames [B, C, H, W] of streams, which remembers the frames before
    and returns [B, D]; the mean over a clip's frames is the clip's features. None if the body needs whole clips."""
    public_weights: tuple[PublicWeights, ...] = ()
    bf16_pays_on_cpu: bool = False
    """Whether bf16 trains faster on a CPU with AMX (docs/explanation/speed.md)."""
    channels_last_pays_on_cpu: bool = False
    """Whether fp32 with channels last trains faster on a CPU (docs/explanation/speed.md)."""
    config: dict[str, Any] | None = None
    """JSON from which the body is rebuilt, for libraries whose model names do not determine it."""


@dataclass(frozen=True)
class Classifier:
    """A linear layer from features to classes."""

    weight: Tensor
    """[N, D]."""
    bias: Tensor
    """[N]."""


class Encoder(nn.Module):
    """A network that maps a normalised view [B, C, T, H, W] to features [B, D].

    ``body`` is the library's own module without its classifier, so its weights load into that library without this
    package.

    Args:
        body: Maps clips in the view's layout, or single frames [B, C, H, W], to [B, D].
        name: For example ``flow_r3d18``.
        view: The view that the encoder takes.
        info: Facts about the body.
    """

    def __init__(self, body: nn.Module, *, name: str, view: ViewSpec, info: EncoderInfo) -> None:
        super().__init__()
        self.body = body
        self.name = name
        self.view = view
        self.info = info
        self.classifier: Classifier | None = None  # set when weights with a linear classifier are loaded
        self._blocks: tuple[Block, ...] | None = None  # set by the first require_blocks
        self.bits: str | None = None  # for example "w4a8"; set by quantization.quantize
        self._token_tap: _TokenTap | None = None

    @property
    def embed_dim(self) -> int:
        """D, the number of features."""
        return self.info.embed_dim

    @property
    def takes(self) -> Takes:
        """Input of the body: clips or single frames."""
        return self.info.takes

    @property
    def public_weights(self) -> tuple[PublicWeights, ...]:
        """Published weights of the network."""
        return self.info.public_weights

    @property
    def config(self) -> dict[str, Any] | None:
        """JSON from which the body is rebuilt, if its name does not determine it."""
        return self.info.config

    @property
    def num_classes(self) -> int | None:
        """N, the number of classes of its logits; None if the weights came without a linear classifier."""
        return None if self.classifier is None else len(self.classifier.bias)

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the body."""
        return sum(parameter.numel() for parameter in self.body.parameters())

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Embed a batch of normalised clips [B, C, T, H, W] or pictures [B, C, H, W] as [B, D].

        The features have the data type of the body's weights.
        """
        clip_bcthw = as_clips(clip_bcthw)
        if not clip_bcthw.is_floating_point():
            raise UserError(
                f"{self.name} takes normalised floats, not {clip_bcthw.dtype}: put stored integers into a View, "
                "and run the encoder by Execution.embed or a Distiller, which normalise it"
            )
        # A body with bf16 weights refuses float32. A body without weights takes any data type.
        clip_bcthw = clip_bcthw.to(next(self.body.parameters(), clip_bcthw).dtype)
        if self.takes == "frames":
            num_frames = clip_bcthw.shape[2]
            frames = self._features_of(self.body(rearrange(clip_bcthw, "b c t h w -> (b t) c h w")))
            if num_frames == 1:
                return frames  # a picture; without this an exported graph has a mean over one frame
            return rearrange(frames, "(b t) d -> b t d", t=num_frames).mean(dim=1)
        if self.view.layout == "BTCHW":
            clip_bcthw = rearrange(clip_bcthw, "b c t h w -> b t c h w")
        return self._features_of(self.body(clip_bcthw))

    def _features_of(self, output: Any) -> Tensor:
        return output if isinstance(output, Tensor) else find_features(output, embed_dim=self.embed_dim, name=self.name)

    def embed_with_tokens(self, clip_bcthw: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a batch, given as for ``forward``: features [B, D], and tokens [B, E, T', H', W'] on the body's grid.

        Raises:
            UserError: The encoder has no tokens.
        """
        layer = self.require_tokens()
        clip_bcthw = as_clips(clip_bcthw)
        module = self.body.get_submodule(layer.module)
        if self._token_tap is None or self._token_tap.module is not module:
            self._token_tap = _TokenTap(module)
        with self._token_tap as tap:
            features = self(clip_bcthw)
            output = tap.output
        assert output is not None, "the body calls its token layer"
        is_per_frame = self.takes == "frames"
        return features, arrange_tokens(output, layer, num_frames=clip_bcthw.shape[2], is_per_frame=is_per_frame)

    def frame_embedder(self) -> Callable[[Tensor], Tensor] | None:
        """Return a function that maps the next frames [B, C, 1, H, W] of streams to [B, D]; None for bodies of clips.

        The features of a clip are the mean over its frames.
        """
        if self.takes == "frames":
            return self
        if self.info.frame_by_frame is None:
            return None
        embed = self.info.frame_by_frame(self.body)
        return lambda clips_bcthw: embed(clips_bcthw.squeeze(2))

    def require_tokens(self) -> TokenLayer:
        """Return the token layer, or raise a ``UserError`` if there is none."""
        if self.info.token_layer is None:
            raise UserError(
                f"{self.name} has no features before pooling (tokens): choose another encoder, or an objective and an "
                "adapter that need none"
            )
        return self.info.token_layer

    def token_shape(self) -> tuple[int, int, int, int]:
        """Return (E, T', H', W') of its tokens, found by a run on a blank clip.

        Raises:
            UserError: The encoder has no tokens.
        """
        # Not on the meta device: some libraries keep tensors between calls, and would keep tensors without values.
        with torch.no_grad(), eval_mode(self):
            _, channels, num_times, height, width = self.embed_with_tokens(self.blank_clip())[1].shape
        return channels, num_times, height, width

    @property
    def pooled_from(self) -> Grid | None:
        """The network's own grid, if its tokens were pooled to a coarser one; None for tokens as they are."""
        return None

    def blank_clip(self) -> Tensor:
        """Return zeros [1, C, T, H, W] of the encoder's view, on the device of its weights."""
        view, device = self.view, next(self.parameters(), torch.empty(0)).device
        return torch.zeros(1, view.kind.channels, view.num_frames, view.size_px, view.size_px, device=device)

    def require_blocks(self) -> tuple[Block, ...]:
        """Return the blocks before the last one, found by one run on a blank clip at the first call.

        Raises:
            UserError: The encoder has no view, its body has no blocks, or those that ``wrap_encoder`` named are none.
        """
        if self._blocks is None:
            self._blocks = tuple(self._find_blocks())
        return self._blocks

    def _find_blocks(self) -> list[Block]:
        named = self.info.blocks
        remedy = "name them by wrap_encoder(blocks=...), or choose another adapter, for example mlp2"
        if self.view == NO_VIEW:
            raise UserError(f"{self.name} has no view to find its blocks with: use wrap_encoder, or another adapter")
        # Not on the meta device: some libraries keep tensors between calls, and would keep tensors without values.
        with torch.no_grad(), eval_mode(self):
            clip = self.blank_clip()
            found = find_blocks(self.body, lambda: self(clip), self.info.token_layer, named=named)
        if not found and not named:
            raise UserError(f"{self.name} has no blocks that map clips to smaller maps, or that repeat: {remedy}")
        if sorted(block.name for block in found) != sorted(set(named) or {block.name for block in found}):
            raise UserError(
                f"the blocks {', '.join(named)} of {self.name} are not all modules that run once and return maps "
                "[B, C, T, H, W], [B, C, H, W] or tokens [B, N, C]: name others"
            )
        return found

    @contextlib.contextmanager
    def watching_blocks(self) -> Iterator[list[Tensor]]:
        """Collect the mean over places and times of each block's output, [B, C] each, while the encoder runs."""
        names = [block.name for block in self.require_blocks()]
        with pooled_outputs(self.body, names, self.info.token_layer) as pooled:
            yield pooled


class _TokenTap:
    """Keeps the output of a module inside a ``with`` block, by a hook, because a library's network returns no tokens.

    The hook stays: torch.compile includes hooks that are there when it traces a network, and no later ones.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.is_open = False
        self.output: Tensor | None = None
        module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.is_open:
            self.output = output

    def __enter__(self) -> _TokenTap:
        self.is_open = True
        return self

    def __exit__(self, *error: object) -> None:
        self.is_open, self.output = False, None


class PlainEncoder(Encoder):
    """An encoder that hands its input to its body unchanged; see ``wrap_module``."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features that ``body(inputs)`` returns; see ``find_features``.

        Raises:
            UserError: The output holds no features [B, embed_dim].
        """
        return find_features(self.body(inputs), embed_dim=self.embed_dim, name=self.name)


# Outputs of libraries' networks that hold the features of a whole picture or clip, the best one first.
POOLED_OUTPUTS = ("pooler_output", "image_embeds", "x_norm_clstoken", "embeddings", "embedding", "features")
SEQUENCE_OUTPUT = "last_hidden_state"
"""Tokens [B, L, D]; their mean is taken if there is no pooled output."""


def find_features(output: Any, *, embed_dim: int, name: str) -> Tensor:
    """Return the features [B, D] in what a network returned: a tensor, or a tuple, list or dictionary that holds one.

    Of a dictionary, a pooled output with a name that libraries use is taken, then the mean of ``last_hidden_state``,
    then the only tensor [B, D]; of a tuple or list, the only tensor [B, D].

    Args:
        output: What the network returned.
        embed_dim: D.
        name: Name of the encoder, for the error.

    Raises:
        UserError: There are no such features, or several that nothing tells apart.

    Example:
        >>> import torch
        >>> find_features((torch.zeros(2, 7, 5), torch.zeros(2, 5)), embed_dim=5, name="mine").shape
        torch.Size([2, 5])
    """
    if isinstance(output, Tensor):
        found = [output] if _has_features(output, embed_dim) else []
    else:
        named = output if isinstance(output, Mapping) else {}
        pooled = [named[key] for key in POOLED_OUTPUTS if _has_features(named.get(key), embed_dim)]
        tokens = named.get(SEQUENCE_OUTPUT)
        if pooled:
            found = pooled[:1]
        elif isinstance(tokens, Tensor) and tokens.dim() == 3 and tokens.shape[2] == embed_dim:
            found = [tokens.mean(dim=1)]
        else:
            values = output.values() if named else output if isinstance(output, list | tuple) else ()
            found = [value for value in values if _has_features(value, embed_dim)]
    if len(found) != 1:
        several = f", {len(found)} of them [B, {embed_dim}]" if found else ""
        raise UserError(
            f"{name} returned {_describe_output(output)}{several}, expected features [B, {embed_dim}]: return one "
            "tensor [B, embed_dim] from the network, and give that embed_dim"
        )
    return found[0]


def _has_features(value: Any, embed_dim: int) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == embed_dim


def _describe_output(output: Any) -> str:
    """Describe what a network returned, for an error."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(f'{key} {_kind(value)}' for key, value in output.items())}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {', '.join(map(_kind, output))}"
    return _kind(output)


def _kind(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


NO_VIEW = ViewSpec("image", num_frames=1, stride=1, size_px=1, mean=(0.0,) * 3, std=(1.0,) * 3)
"""The view of a ``PlainEncoder``, which only takes tensors that its user has prepared."""


def as_clips(tensor: Tensor) -> Tensor:
    """Return clips [B, C, T, H, W] unchanged, and pictures [B, C, H, W] as clips of one frame."""
    return tensor[:, :, None] if tensor.dim() == 4 else tensor


def wrap_encoder(
    module: nn.Module,
    *,
    view: ViewSpec,
    embed_dim: int,
    modality: str | None = None,
    name: str | None = None,
    takes: Takes | None = None,
    classifier: str = "",
    stem: str = "",
    token_layer: TokenLayer | None = None,
    blocks: Sequence[str] = (),
) -> Encoder:
    """Make an encoder of a module that maps normalised clips or frames to [B, D].

    Args:
        module: Network whose input has the layout of the view, normalised with the view's mean and std.
        view: The view that the module takes.
        embed_dim: D, the number of features.
        modality: The same modality as the view's, as a check.
        name: Name for reports, which starts with the modality; ``<modality>_<class of the module>`` if None.
        takes: Clips, or single frames whose features are averaged; None chooses frames for a modality without time.
        classifier: Prefix of a classifier's tensors that weight files hold and the module lacks.
        stem: Name of the first convolution, if weights of another modality may be adapted to it.
        token_layer: The layer before pooling, if an objective or an adapter uses tokens.
        blocks: Names of the modules before the last block, for the adapter ``ladder``; found by a run if empty.

    Raises:
        UserError: The modality is not the view's, or the name does not start with it.

    Example:
        >>> import torch
        >>> view = ViewSpec("rgb", num_frames=4, stride=2, size_px=8, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> encoder = wrap_encoder(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), view=view, embed_dim=5)
        >>> encoder.name, encoder(torch.zeros(2, 3, 4, 8, 8)).shape
        ('rgb_sequential', torch.Size([2, 5]))
    """
    if modality not in (None, view.modality):
        raise UserError(f"modality is {modality}, but the view's is {view.modality}: give the same one, or none")
    name = name or f"{view.modality}_{type(module).__name__.lower()}"
    if not name.startswith(f"{view.modality}_"):
        raise UserError(f"name is {name!r}: give a name that starts with {view.modality}_, the modality of the view")
    info = EncoderInfo(
        embed_dim=embed_dim,
        takes=takes or ("clip" if view.kind.has_time else "frames"),
        classifier_prefix=classifier,
        stems=(stem,) if stem else (),
        token_layer=token_layer,
        blocks=tuple(blocks),
    )
    return Encoder(module, name=name, view=view, info=info)


def wrap_module(module: nn.Module, embed_dim: int | None = None, *, name: str | None = None) -> Encoder:
    """Make an encoder of a module that takes plain tensors, for training loops of your own.

    The encoder hands its input to the module unchanged, whatever its shape, and has neither a view nor tokens.

    Args:
        module: Maps a tensor to features [B, embed_dim].
        embed_dim: Number of features; ``module.embed_dim`` or ``module.num_features`` (timm) if None.
        name: Name for messages and logs; the lower-case name of the module's class if None.

    Raises:
        UserError: ``embed_dim`` is None and the module does not have it either.

    Example:
        >>> import torch
        >>> encoder = wrap_module(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), embed_dim=5)
        >>> encoder(torch.zeros(2, 3, 2, 2)).shape
        torch.Size([2, 5])
    """
    name = name or type(module).__name__.lower()
    found = (embed_dim, getattr(module, "embed_dim", None), getattr(module, "num_features", None))
    sizes = [size for size in found if isinstance(size, int)]
    if not sizes:
        raise UserError(f"{name} has no embed_dim or num_features to say how many features it returns: pass embed_dim")
    return PlainEncoder(module, name=name, view=NO_VIEW, info=EncoderInfo(embed_dim=sizes[0]))
