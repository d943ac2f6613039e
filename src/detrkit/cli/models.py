"""``detrkit models``: the presets, and the parts of one."""

from __future__ import annotations

from typing import Annotated

import typer

from detrkit.cli.shared import JsonOption, errors, opt, print_json
from detrkit.families.presets import PRESETS

# Slots of COCO's published head, for counting parameters.
_COCO_LABELS = 91


def models(
    parts: Annotated[
        str | None,
        opt("PRESET", "List a preset's parts instead, as train.freeze and train.lr_scale name them.", "--parts"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Presets, and which have published weights: AP and PQ on COCO val2017, parameters, licence."""
    with errors():
        if parts is not None:
            _list_parts(parts, as_json)
        else:
            _list_presets(as_json)


def _list_presets(as_json: bool) -> None:
    if as_json:
        rows = {
            name: {
                "summary": preset.summary,
                "params_m": preset.params_m,
                "published": None if preset.published is None else vars(preset.published),
            }
            for name, preset in PRESETS.items()
        }
        print_json(rows)
        return
    width = max(map(len, PRESETS))
    typer.echo(f"{'preset':{width}} {'params':>8} {'AP':>5} {'PQ':>5}  {'weights':22} for")
    for name, preset in PRESETS.items():
        published = preset.published
        numbers = (published.box_ap, published.pq) if published else (None, None)
        ap, pq = (f"{number:.1f}" if number else "-" for number in numbers)
        start = "ImageNet backbone" if preset.backbone_file else "none"
        weights = f"COCO, {published.licence}" if published else start
        typer.echo(f"{name:{width}} {preset.params_m:>6.1f} M {ap:>5} {pq:>5}  {weights:22} {preset.summary}")
    typer.echo("AP of boxes and panoptic quality on COCO val2017, as published.")
    typer.echo("Start one with: detrkit train --model PRESET --data DATA")


def _list_parts(preset: str, as_json: bool) -> None:
    sizes = model_parts(preset)
    if as_json:
        print_json(sizes)
        return
    typer.echo(f"{'part of ' + preset:24} {'parameters':>12}")
    for name, size in sizes.items():
        typer.echo(f"{'  ' * name.count('.') + name:24} {size:>12,}")
    total = sum(size for name, size in sizes.items() if "." not in name)
    typer.echo(f"{'in all, with COCO head':24} {total:>12,}")
    typer.echo("Freeze some: --set 'train.freeze=[backbone]'. Other rates: --set 'train.lr_scale={encoder: 0.1}'")


def model_parts(preset: str) -> dict[str, int]:
    """Count the parameters of each part of a preset with COCO's head, from the image to the detections.

    A part inside another, such as ``backbone.stem``, is counted in both.
    """
    from detrkit.families.build import get_family
    from detrkit.families.parts import find_places, is_inside, part_names
    from detrkit.families.recipes import preset_config

    config = preset_config(preset)
    model = get_family(config.model).build(config.model, _COCO_LABELS)
    places = find_places(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return {
        part: sum(size for name, size in sizes.items() if is_inside(places[name].part, part))
        for part in part_names(places)
    }
