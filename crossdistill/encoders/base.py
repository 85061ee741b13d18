"""What every encoder is: a plain library network, and the view it wants to see.

Shapes: B batch, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from einops import rearrange
from torch import Tensor, nn

from crossdistill.encoders.sizes import output_shape
from crossdistill.errors import UserError
from crossdistill.modalities import MODALITIES, get_modality
from crossdistill.types import ViewSpec

CLIP_MODALITIES = tuple(kind.name for kind in MODALITIES.values() if kind.has_time)
"""What a network of clips can be built for: only its first convolution differs."""
Takes = Literal["clip", "frames"]
"""What a body maps to features: whole clips [B, C, T, H, W], or single frames [B, C, H, W]."""


@dataclass(frozen=True)
class Statistics:
    """How the pictures that an encoder's weights were trained with were prepared."""

    mean: tuple[float, ...]
    """In the modality's unit."""
    std: tuple[float, ...]
    centre_fraction: float = 1.0
    """See ``ViewSpec.centre_fraction``."""


@dataclass(frozen=True)
class PublicWeights:
    """Weights of an architecture that its library publishes."""

    name: str
    """What ``--teacher-weights`` calls them, for example ``kinetics400``."""
    modalities: tuple[str, ...]
    """For which they make a teacher; as a student's start they fit the other modalities too, by their stem."""
    url: str
    top1_percent: float | None = None
    """As published, on the data that they are named after."""
    read: Callable[[], Mapping[str, Tensor]] | None = None
    """The library's own way to get them, where it is more than fetching one file."""


@dataclass(frozen=True)
class TokenLayer:
    """Where a body has its features before they are pooled: one for each place and time."""

    module: str
    """Name of the module in the body whose output they are."""
    layout: Literal["channels-first", "channels-last", "sequence"] = "channels-first"
    """[B, C, T, H, W], [B, T, H, W, C] (both without T for single frames), or [B, N, C]: tokens in the order of time,
    rows, columns of a square grid, after ``num_prefix`` class and register tokens, which are left out."""
    frames_per_token: int = 1
    """Of a sequence: how many frames of the clip one token spans."""
    num_prefix: int = 0
    """Of a sequence: tokens before the grid."""


@dataclass(frozen=True)
class Classifier:
    """The linear layer from features to classes that weights came with; objectives on logits want a teacher's."""

    weight: Tensor
    """[N, D]."""
    bias: Tensor
    """[N]."""


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry: how to build a network without its classifier, and what it sees."""

    build: Callable[[ViewSpec], nn.Module]
    """View to a body that maps such views to [B, D]."""
    embed_dim: int
    modalities: tuple[str, ...]
    num_frames: int
    """Of a clip, as its stride; of a modality without time the network sees single frames."""
    stride: int
    size_px: int
    stem: str
    """Name of the first convolution, which takes the modality's channels."""
    classifier_prefix: str
    """Prefix of the classifier's weights in the library's own model; dropped when weights are loaded."""
    statistics: dict[str, Statistics] = field(default_factory=dict)
    """Per modality; the modality's own where absent."""
    more_stems: tuple[str, ...] = ()
    """Of a network of several pathways: the first convolutions of the others."""
    takes: Takes = "clip"
    """What the body is given."""
    token_layer: TokenLayer | None = None
    """Where its features before pooling are; None if it has none."""
    bf16_pays_on_cpu: bool = False
    """Measured: whether bf16 trains faster on a CPU with AMX (docs/speed.md)."""
    channels_last_pays_on_cpu: bool = False
    """Measured: whether fp32 with channels last trains faster on a CPU (docs/speed.md)."""
    source: str = ""
    """The library and class that the body's weights load into, for people."""
    public_weights: tuple[PublicWeights, ...] = ()
    published_gmacs: float | None = None
    """Multiply-adds of one view (of one frame if it takes frames) with the classifier, in thousand millions, as the
    library or paper has them."""

    def view(self, modality: str) -> ViewSpec:
        """The view that this architecture asks for in one of its modalities."""
        kind = get_modality(modality)
        statistics = self.statistics.get(modality, Statistics(kind.mean, kind.std))
        return ViewSpec(
            modality=modality,
            num_frames=self.num_frames if kind.has_time else 1,
            stride=self.stride if kind.has_time else 1,
            size_px=self.size_px,
            mean=statistics.mean,
            std=statistics.std,
            centre_fraction=statistics.centre_fraction,
        )


class Encoder(nn.Module):
    """A network that maps a normalised view [B, C, T, H, W] to features [B, D].

    ``body`` is the source library's own module with its classifier removed, so that its weights load
    into that library without this package. A body of single frames embeds every frame, and the features
    of a clip's frames are averaged.

    Args:
        body: Maps [B, C, T, H, W] (or the view's layout), or [B, C, H, W] for single frames, to [B, D].
        name: For example ``flow_r3d18``.
        view: What the encoder wants to see.
        embed_dim: D.
        takes: Whether the body is given clips or single frames.
        classifier_prefix: Prefix of classifier weights to leave out when weights are loaded.
        stem: Name of the body's first convolution.
        more_stems: Those of its other pathways.
        bf16_pays_on_cpu: Whether bf16 is faster on a CPU with AMX.
        channels_last_pays_on_cpu: Whether channels last in memory is faster on a CPU.
        public_weights: That can be loaded by name.
        token_layer: Where the features before pooling are, for objectives and adapters that want them.
        config: What the source needs to build the body again where its name does not say everything (JSON).
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        name: str,
        view: ViewSpec,
        embed_dim: int,
        takes: Takes = "clip",
        classifier_prefix: str = "",
        stem: str = "",
        more_stems: tuple[str, ...] = (),
        bf16_pays_on_cpu: bool = False,
        channels_last_pays_on_cpu: bool = False,
        public_weights: tuple[PublicWeights, ...] = (),
        token_layer: TokenLayer | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self.name = name
        self.view = view
        self.embed_dim = embed_dim
        self.takes = takes
        self.classifier_prefix = classifier_prefix
        self.stem = stem
        self.more_stems = more_stems
        self.bf16_pays_on_cpu = bf16_pays_on_cpu
        self.channels_last_pays_on_cpu = channels_last_pays_on_cpu
        self.public_weights = public_weights
        self.token_layer = token_layer
        self.config = config
        self.classifier: Classifier | None = None  # set when weights with a linear classifier are loaded
        self.bits: str | None = None  # for example w4a8, set by quantization.quantize

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Embed a batch of normalised clips [B, C, T, H, W] or pictures [B, C, H, W] as [B, D].

        The features have the data type of the body's weights.
        """
        clip_bcthw = as_clips(clip_bcthw)
        clip_bcthw = clip_bcthw.to(next(self.body.parameters(), clip_bcthw).dtype)
        if self.takes == "frames":
            num_frames = clip_bcthw.shape[2]
            frames: Tensor = self.body(rearrange(clip_bcthw, "b c t h w -> (b t) c h w"))
            return rearrange(frames, "(b t) d -> b t d", t=num_frames).mean(dim=1)
        if self.view.layout == "BTCHW":
            clip_bcthw = rearrange(clip_bcthw, "b c t h w -> b t c h w")
        features: Tensor = self.body(clip_bcthw)
        return features

    def embed_with_tokens(self, clip_bcthw: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a batch and give its features before pooling as well.

        Args:
            clip_bcthw: Normalised views [B, C, T, H, W].

        Returns:
            [B, D], and the tokens [B, E, T', H', W'] on the body's own grid.

        Raises:
            UserError: The encoder has no tokens.
        """
        layer = self.require_tokens()
        clip_bcthw = as_clips(clip_bcthw)
        seen: list[Tensor] = []
        hook = self.body.get_submodule(layer.module).register_forward_hook(lambda *call: seen.append(call[2]))
        try:
            features = self(clip_bcthw)
        finally:
            hook.remove()
        return features, arrange_tokens(seen[-1], layer, num_frames=clip_bcthw.shape[2], takes=self.takes)

    def require_tokens(self) -> TokenLayer:
        """The token layer, or a ``UserError`` for an encoder without one."""
        if self.token_layer is None:
            raise UserError(
                f"{self.name} has no features before pooling (tokens): choose another encoder, or an objective and an "
                "adapter that need none"
            )
        return self.token_layer

    @property
    def num_parameters(self) -> int:
        """Parameters of the body."""
        return sum(parameter.numel() for parameter in self.body.parameters())


class PlainEncoder(Encoder):
    """An encoder that hands its input to its body unchanged; see ``wrap_module``."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``body(inputs)``.

        Raises:
            UserError: The output is not a tensor [B, embed_dim].
        """
        features = self.body(inputs)
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != self.embed_dim:
            given = (
                f"shape {list(features.shape)}" if isinstance(features, Tensor) else f"type {type(features).__name__}"
            )
            raise UserError(
                f"{self.name} returned features of {given}, expected a tensor [B, {self.embed_dim}]: pass the module's "
                "embed_dim, or a module that returns [B, embed_dim]"
            )
        return features


def as_clips(tensor: Tensor) -> Tensor:
    """Return clips [B, C, T, H, W] unchanged, and pictures [B, C, H, W] as clips of one frame."""
    return tensor[:, :, None] if tensor.dim() == 4 else tensor


def arrange_tokens(output: Tensor, layer: TokenLayer, *, num_frames: int, takes: Takes) -> Tensor:
    """Bring a token layer's output into one layout.

    Args:
        output: As ``layer.layout`` says; for a body of single frames its first axis is batch times frames.
        layer: The layer.
        num_frames: T of the clip.
        takes: What the body is given.

    Returns:
        [B, E, T', H', W'].
    """
    if layer.layout == "sequence":
        num_times = max(1, num_frames // layer.frames_per_token) if takes == "clip" else 1
        grid = output[:, layer.num_prefix :]
        side = math.isqrt(grid.shape[1] // num_times)
        if num_times * side * side != grid.shape[1]:
            raise ValueError(f"{grid.shape[1]} tokens are no square grid at {num_times} times")
        output = rearrange(grid, "b (t h w) e -> b t h w e", t=num_times, h=side)
    if layer.layout != "channels-first":
        output = output.movedim(-1, 1)
    if takes == "frames":  # each frame has a time of its own, which is 1 in a sequence and absent elsewhere
        return rearrange(output.squeeze(2) if output.dim() == 5 else output, "(b t) e h w -> b e t h w", t=num_frames)
    return output


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
) -> Encoder:
    """Make an encoder of any module that maps normalised clips or frames to [B, D].

    Args:
        module: Takes the view's layout, normalised with the view's mean and deviation.
        view: What the module wants to see.
        embed_dim: D.
        modality: The view's, which it must agree with; for readers.
        name: How reports call it; ``<modality>_<class of the module>`` if None.
        takes: Whether the module is given clips, or single frames whose features are averaged; by default
            frames if the modality is one of single pictures.
        classifier: Prefix of classifier weights that weight files may hold and the module lacks.
        stem: Name of the first convolution, if weights of another modality may be adapted to it.
        token_layer: Where the module has features before pooling, if objectives or adapters are to use them.

    Raises:
        UserError: The modality is not the view's, or the name does not begin with it.
    """
    if modality not in (None, view.modality):
        raise UserError(f"the view is one of {view.modality}, not of {modality}: give the same modality in both places")
    name = name or f"{view.modality}_{type(module).__name__.lower()}"
    if not name.startswith(f"{view.modality}_"):
        raise UserError(f"an encoder of {view.modality} is named {view.modality}_<something>, not {name!r}")
    takes = takes or ("clip" if view.kind.has_time else "frames")
    return Encoder(
        module,
        name=name,
        view=view,
        embed_dim=embed_dim,
        takes=takes,
        classifier_prefix=classifier,
        stem=stem,
        token_layer=token_layer,
    )


NO_VIEW = ViewSpec("image", num_frames=1, stride=1, size_px=1, mean=(0.0,) * 3, std=(1.0,) * 3)
"""The view of a ``PlainEncoder``, which only takes tensors that its user has prepared."""


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
        raise UserError(
            f"{name} has no embed_dim or num_features that says how many features it returns: pass embed_dim"
        )
    return PlainEncoder(module, name=name, view=NO_VIEW, embed_dim=sizes[0])


def build_encoder(
    architecture: Architecture,
    *,
    name: str,
    modality: str,
    num_frames: int | None = None,
    stride: int | None = None,
    size_px: int | None = None,
) -> Encoder:
    """Build a registry entry with fresh weights.

    Args:
        architecture: The entry.
        name: Full name, for example ``flow_r3d18``.
        modality: One of the architecture's modalities.
        num_frames: Frames of a clip; the architecture's own if None, and so for the next two.
        stride: Frames between frames.
        size_px: Height and width.

    Raises:
        UserError: The network cannot take such a view.
    """
    own = architecture.view(modality)
    wanted = {"num_frames": num_frames, "stride": stride, "size_px": size_px}
    view = replace(own, **{key: value for key, value in wanted.items() if value is not None})  # type: ignore[arg-type]
    with _views_that_do_not_fit(name, view, own):
        body = architecture.build(view)
        if replace(view, stride=own.stride) != own:
            _require_features(body, view, architecture)
    return Encoder(
        body,
        name=name,
        view=view,
        embed_dim=architecture.embed_dim,
        takes=architecture.takes,
        token_layer=architecture.token_layer,
        classifier_prefix=architecture.classifier_prefix,
        stem=architecture.stem,
        more_stems=architecture.more_stems,
        bf16_pays_on_cpu=architecture.bf16_pays_on_cpu,
        channels_last_pays_on_cpu=architecture.channels_last_pays_on_cpu,
        public_weights=architecture.public_weights,
    )


@contextlib.contextmanager
def _views_that_do_not_fit(name: str, view: ViewSpec, own: ViewSpec) -> Iterator[None]:
    """Say in one sentence what torch and the libraries say in many ways, if the view is not the network's own."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
        if view == own:
            raise
        reason = " ".join(str(error).split("\n", 1)[0].split()) or type(error).__name__
        raise UserError(
            f"{name} cannot take {view.num_frames} frames of {view.size_px} pixels ({reason}): its own view is "
            f"{own.num_frames} of {own.size_px}, so give more or larger frames, or leave out the options that change it"
        ) from error


def _require_features(body: nn.Module, view: ViewSpec, architecture: Architecture) -> None:
    """Run the body on the meta device, because a small view can have nothing left after all strides."""
    num_frames = () if architecture.takes == "frames" else (view.num_frames,)
    shape = output_shape(body, 1, view.kind.channels, *num_frames, view.size_px, view.size_px)
    if shape != (1, architecture.embed_dim):
        raise ValueError(f"it gives {list(shape)} instead of {architecture.embed_dim} features")


def replace_stem(body: nn.Module, stem: str, channels: int) -> None:
    """Give a network's first convolution another number of input channels, freshly initialised.

    Args:
        body: Changed in place; untouched if the number is right.
        stem: Name of a convolution in it.
        channels: Wanted.
    """
    old = body.get_submodule(stem)
    assert isinstance(old, nn.Conv2d | nn.Conv3d)
    if old.in_channels == channels:
        return
    new = type(old)(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, leaf = stem.rpartition(".")
    setattr(body.get_submodule(parent), leaf, new)
