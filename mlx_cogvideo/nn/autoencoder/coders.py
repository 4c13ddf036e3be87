"""Encoder and decoder. Each maps a chunk of frames, with a cache of the frames before it."""

import mlx.core as mx
import mlx.nn as nn

from ..config import AutoencoderConfig
from .convolutions import CausalConv3d
from .layers import Downsample3D, ResnetBlock3D, Upsample3D, repeat_frames
from .norms import make_norm
from .row_strips import ConvCache, RowStrips


class Block3D(nn.Module):
    """A level of the encoder or decoder, or the middle: residual blocks, then a resampling."""

    def __init__(
        self,
        channels: tuple[int, int],
        layers: int,
        config: AutoencoderConfig,
        latent_channels: int | None = None,
    ):
        super().__init__()
        in_channels, out_channels = channels
        inputs, groups = [in_channels] + [out_channels] * (layers - 1), config.norm_num_groups
        self.resnets = [ResnetBlock3D(n, out_channels, groups, latent_channels) for n in inputs]
        self.downsamplers: list[Downsample3D] = []
        self.upsamplers: list[Upsample3D] = []

    def __call__(self, x: RowStrips, latents: mx.array | None, cache: ConvCache) -> RowStrips:
        if latents is not None:
            latents = repeat_frames(latents, x[0].shape[1])
        for resnet in self.resnets:
            x = resnet(x, latents, cache)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x, cache)
        return x


class Encoder3D(nn.Module):
    """``[B, F, H, W, 3] -> [B, f, h, w, 2·latent_channels]``: mean and log-variance.

    Pixels are in [-1, 1], or uint8.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        self.conv_in = CausalConv3d(config.in_channels, channels[0])
        self.down_blocks = []
        for level, pair in enumerate(zip((channels[0], *channels), channels, strict=False)):
            block = Block3D(pair, config.layers_per_block, config)
            if level < len(channels) - 1:
                block.downsamplers = [Downsample3D(pair[1], config.compresses_time(level))]
            self.down_blocks.append(block)
        self.mid_block = Block3D((channels[-1], channels[-1]), 2, config)
        self.norm_out = make_norm(config.norm_num_groups, channels[-1], None)
        self.conv_out = CausalConv3d(channels[-1], 2 * config.latent_channels)

    def __call__(self, pixels: mx.array, cache: ConvCache) -> mx.array:
        if pixels.dtype == mx.uint8:
            pixels = pixels.astype(mx.float32) / 127.5 - 1
        pixels = pixels.astype(self.conv_in.conv.weight.dtype)
        growth = self.config.block_out_channels[0] / self.config.in_channels
        x = list(self.conv_in(cache.cut([pixels], growth), cache))
        for block in (*self.down_blocks, self.mid_block):
            x = block(x, None, cache)
        return mx.concatenate(list(self.conv_out(self.norm_out(x, None, cache), cache)), axis=2)


class Decoder3D(nn.Module):
    """``[B, f, h, w, latent_channels] -> [B, F, H, W, 3]``."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels = config.block_out_channels[::-1]
        latent, groups = config.latent_channels, config.norm_num_groups
        self.conv_in = CausalConv3d(latent, channels[0])
        self.mid_block = Block3D((channels[0], channels[0]), 2, config, latent)
        self.up_blocks = []
        for level, pair in enumerate(zip((channels[0], *channels), channels, strict=False)):
            block = Block3D(pair, config.layers_per_block + 1, config, latent)
            if level < len(channels) - 1:
                block.upsamplers = [Upsample3D(pair[1], config.compresses_time(level))]
            self.up_blocks.append(block)
        self.norm_out = make_norm(groups, channels[-1], latent)
        self.conv_out = CausalConv3d(channels[-1], config.out_channels)

    def __call__(self, latents: mx.array, cache: ConvCache) -> mx.array:
        latents = latents.astype(self.conv_in.conv.weight.dtype)
        x = list(self.conv_in([latents], cache))
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, latents, cache)
        latents = repeat_frames(latents, x[0].shape[1])
        return mx.concatenate(list(self.conv_out(self.norm_out(x, latents, cache), cache)), axis=2)
