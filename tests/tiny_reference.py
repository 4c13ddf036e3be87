"""A PyTorch transcription of TAECVX's decoder, with random weights under the published names."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

CHANNELS = (256, 128, 64)
GROWTHS = (1, 2, 2)


class Block(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        convs = [nn.Conv2d(2 * n, n, 3, padding=1)] + [
            nn.Conv2d(n, n, 3, padding=1) for _ in range(2)
        ]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


class Growth(nn.Module):
    def __init__(self, n: int, times: int):
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(n, n * times, 1, bias=False)


class TorchTinyDecoder(nn.Module):
    """All frames of a clip at once, as upstream does it in parallel."""

    def __init__(self, latent_channels: int = 16):
        super().__init__()
        layers = [nn.Identity(), nn.Conv2d(latent_channels, CHANNELS[0], 3, padding=1), nn.ReLU()]
        for level, (n, times) in enumerate(zip(CHANNELS, GROWTHS, strict=True)):
            following = CHANNELS[min(level + 1, 2)]
            layers += [Block(n), Block(n), Block(n), nn.Upsample(scale_factor=2)]
            layers += [Growth(n, times), nn.Conv2d(n, following, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(CHANNELS[-1], 3, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, latents: torch.Tensor, stills: bool = False) -> torch.Tensor:
        """Latents [F, C, h, w] to pixels [F', 3, H, W] in [-1, 1], without the startup frames."""
        x = torch.tanh(latents / 3) * 3
        for layer in self.decoder[1:]:
            if isinstance(layer, Block):
                before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
                x = F.relu(layer.conv(torch.cat([x, before], dim=1)) + x)
            elif isinstance(layer, Growth):
                grown = layer.conv(x).unflatten(1, (layer.times, -1))
                x = grown[:, -1] if stills else grown.flatten(0, 1)
            else:
                x = layer(x)
        skipped = 3 if len(latents) % 2 and not stills else 0
        return x[skipped:].clamp(0, 1) * 2 - 1


def make_tiny_vae(seed: int = 0, latent_channels: int = 16) -> TorchTinyDecoder:
    """A decoder whose random weights keep the scale of what goes through."""
    torch.manual_seed(seed)
    decoder = TorchTinyDecoder(latent_channels)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            gain = 0.7 if ".conv." in name else 1.4
            scale = gain / fan_in**0.5 if parameter.ndim > 1 else 0.05
            parameter.copy_(torch.randn(parameter.shape) * scale)
        decoder.decoder[-1].bias.add_(0.5)
        decoder.decoder[-1].weight.mul_(0.1)
    return decoder


def published(decoder: TorchTinyDecoder) -> dict[str, torch.Tensor]:
    """The tensors as files have them: a kernel for two frames at each growth, and an encoder."""
    tensors = {name: t.detach().clone() for name, t in decoder.state_dict().items()}
    first = tensors["decoder.7.conv.weight"]
    tensors["decoder.7.conv.weight"] = torch.cat([torch.randn_like(first), first])
    return tensors | {"encoder.0.weight": torch.zeros(64, 3, 3, 3)}


def save_tiny_vae(path: Path, decoder: TorchTinyDecoder) -> Path:
    """Writes a safetensors file, or one of PyTorch's by another ending."""
    if path.suffix == ".safetensors":
        save_file(published(decoder), path)
    else:
        torch.save(published(decoder), path)
    return path
