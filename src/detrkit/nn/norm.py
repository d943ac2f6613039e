"""Normalisations that know about padding."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PaddedGroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics leave padding out.

    Plain group norm averages over the whole tensor, so an image's features would depend on how much it was
    padded. Images ``[B, C, H, W]``; ``valid`` ``[B, 1, H, W]`` is 1 on the image and 0 on padding.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise; with ``valid`` None every position counts."""
        if valid is None:
            return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        batch, channels, height, width = x.shape
        grouped = x.float().reshape(batch, self.num_groups, channels // self.num_groups, height, width)
        weights = valid.float().unsqueeze(1)
        count = weights.sum(dim=(2, 3, 4), keepdim=True) * (channels // self.num_groups)
        mean = (grouped * weights).sum(dim=(2, 3, 4), keepdim=True) / count
        variance = ((grouped - mean).square() * weights).sum(dim=(2, 3, 4), keepdim=True) / count
        normalized = ((grouped - mean) * (variance + self.eps).rsqrt()).reshape(x.shape)
        return (normalized * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)
