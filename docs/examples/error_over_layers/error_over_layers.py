# SPDX-License-Identifier: MIT
"""error_over_layers.py CAPTURE OUT.svg: draws how far the output of each layer is from the oracle's, lane by lane."""

import math
import sys

import moe_diag
import numpy

COLOURS = ["#c0392b", "#2471a3", "#1e8449", "#7d3c98"]
LEFT, TOP, WIDTH, HEIGHT = 70, 20, 520, 260


def errors(capture, prompt, oracle):
    """For each lane but the oracle, the relative L2 error of `layer_output` at every layer."""
    curves = {}
    for lane in capture.lanes:
        if lane == oracle:
            continue
        curves[lane] = []
        for layer in capture.layers:
            truth = capture[prompt, oracle, layer, "layer_output"]
            values = capture[prompt, lane, layer, "layer_output"]
            curves[lane].append(float(numpy.linalg.norm(values - truth) / numpy.linalg.norm(truth)))
    return curves


def draw(layers, curves):
    """The curves as SVG, the error in powers of ten."""
    exponents = [math.log10(error) for curve in curves.values() for error in curve]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))

    def x(layer):
        return LEFT + WIDTH * (layer - layers[0]) / max(1, layers[-1] - layers[0])

    def y(exponent):
        return TOP + HEIGHT * (high - exponent) / (high - low)

    def text(at_x, at_y, words, more=""):
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" {more}>{words}</text>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 70} {TOP + HEIGHT + 50}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for exponent in range(low, high + 1):
        lines.append(f'<path d="M{LEFT} {y(exponent):.1f}h{WIDTH}" stroke="#ddd"/>')
        lines.append(text(LEFT - 8, y(exponent) + 4, f"1e{exponent}", 'text-anchor="end"'))
    for layer in layers[:: max(1, len(layers) // 8)]:
        lines.append(text(x(layer), TOP + HEIGHT + 18, layer, 'text-anchor="middle"'))
    lines.append(text(LEFT + WIDTH / 2, TOP + HEIGHT + 38, "layer", 'text-anchor="middle"'))
    for (lane, curve), colour in zip(curves.items(), COLOURS):
        points = " ".join(f"{x(layer):.1f},{y(math.log10(error)):.1f}" for layer, error in zip(layers, curve))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(text(LEFT + WIDTH + 8, y(math.log10(curve[-1])) + 4, lane, f'fill="{colour}"'))
    return "\n".join([*lines, "</svg>"]) + "\n"


capture = moe_diag.open_capture(sys.argv[1])
curves = errors(capture, prompt=capture.prompts[0], oracle="truth")
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write(draw(capture.layers, curves))
