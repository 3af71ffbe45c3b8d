"""Plant bugs, one at a time, and see that a test fails for each.

    python tests/planted_bugs.py             all of them
    python tests/planted_bugs.py eps axis    those whose name holds one of the words

A bug is a replacement of text in a temporary copy of the tree; the tree itself is not touched.
Each names a few tests that must find it, and those tests must pass without it. Exit code 1 if
a bug survives. A bug in fxquant is also a bug in its tests: a surviving one asks for a test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

TFLITE = "tests/export/test_tflite.py"
VERIFY = "tests/export/test_verify.py"
REFERENCE = "tests/test_reference.py::test_every_activation_is_the_reference"
REAL = "tests/test_reference.py::test_every_operator_is_within_half_a_step_of_the_real_one"
NO_FLOAT = "tests/test_reference.py::test_there_is_no_float_between_quantize_and_dequantize"
EVAL = "tests/test_reference.py::test_converted_is_eval"
DAMAGED = "tests/saved/test_damaged_files.py::test_tampered_files_with_the_right_digest"
UNCALIBRATED = "tests/test_reference.py::test_until_it_has_seen_data_eval_is_the_float_network"

# lines of fxquant/recipes.py
JOIN = (
    "            JoinAdds(),  "
    "# before fuse: a sum that has taken an activation in is no longer joined\n"
)
SCALE = (
    "            ScaleByParameters(),  "
    "# after join_products, which takes products into sums\n"
)
FOLD = "            *fold,  # before fuse, which would keep the batch norms live\n"
FUSE = "            FuseConvBnRelu(),\n"
OBSERVE = (
    "            # after fuse: nothing is observed inside a site\n"
    "            InsertObservers(float_leaves, config.calibrator),\n"
)


class Bug(NamedTuple):
    """`old` becomes `new` in `file`, where it stands exactly once; one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BUGS = (
    # ---------------------------------------------------------------- a layer's numbers
    Bug(
        "a path of what a layer took in means its weight, too",
        "fxquant/overrides.py",
        "return override.path is None or bool(fnmatch.filter(own, override.path))",
        "return True or bool(own)",
        (
            "tests/test_overrides.py::"
            "test_a_module_that_a_layer_took_in_means_what_the_layer_gives",
        ),
    ),
    Bug(
        "sensitivity takes shaped weights for real ones",
        "fxquant/layer_costs.py",
        "as_float(prepare_ptq(model, example_inputs, real))",
        "as_float(prepare_ptq(model, example_inputs, replace(config, overrides=())))",
        ("tests/test_mixed_precision.py::test_it_is_compared_with_the_float_model",),
    ),
    Bug(
        "any truth value is a flag",
        "fxquant/fields.py",
        'if field.type == "bool" and type(value) is not bool:',
        'if field.type == "bool" and value is None:',
        ("tests/test_bad_values.py::test_every_field_of_every_record",),
    ),
    Bug(
        "a folder that is not there is found out at the end",
        "fxquant/files.py",
        "if not os.path.isdir(place.parent):",
        "if not place.parent:",
        (
            "tests/test_bad_values.py::"
            "test_a_place_that_cannot_be_written_to_is_told_before_the_work",
        ),
    ),
    Bug(
        "fixed weights are not the largest",
        "fxquant/fake_quant/inq.py",
        "size.argsort(descending=True,",
        "size.argsort(descending=False,",
        ("tests/test_incremental.py::test_by_hand",),
    ),
    Bug(
        "what is fixed is rounded anew",
        "fxquant/fake_quant/inq.py",
        "torch.where(self.fixed, self.codes, codes * fixed)",
        "codes * fixed",
        ("tests/test_incremental.py::test_the_largest_are_fixed_and_stay",),
    ),
    Bug(
        "powers of two are parted in the middle of their logarithms",
        "fxquant/fake_quant/inq.py",
        "(mantissa < 0.75)",
        "(mantissa < 0.5**0.5)",
        ("tests/test_incremental.py::test_codes_are_the_papers",),
    ),
    Bug(
        "the bias is dropped",
        "fxquant/intmath.py",
        "bias=b_codes.to(torch.int32),",
        "bias=torch.zeros_like(b_codes).to(torch.int32),",
        (f"{REAL}[convs-default]",),
    ),
    Bug(
        "a bias that does not fit is clipped",
        "fxquant/intmath.py",
        "s_w = torch.maximum(scale.double(), b.abs() / (s_x * bias_limit))",
        "s_w = scale.double()",
        (
            "tests/test_intmath.py::"
            "test_a_bias_that_does_not_fit_enlarges_the_scale_of_its_channel",
        ),
    ),
    Bug(
        "the worst case of a sum forgets the bias",
        "fxquant/ops/layer.py",
        "worst=tuple((bound + n.bias.abs()).tolist()),",
        "worst=tuple(bound.tolist()),",
        ("tests/test_audit.py::test_by_hand",),
    ),
    Bug(
        "an old bound proves new weights",
        "fxquant/ops/layer.py",
        "exact=bool((bound <= n.bound).all()),",
        "exact=True,",
        ("tests/test_audit.py::test_weights_that_were_changed_are_not_proved_by_an_old_bound",),
    ),
    Bug(
        "a bias takes more than half of a narrow accumulator",
        "fxquant/ops/layer.py",
        "*call.weights, call.inputs[0], call.target, call.accumulator_bits",
        "*call.weights, call.inputs[0], call.target",
        ("tests/test_audit.py::test_a_bias_may_take_half_of_it",),
    ),
    Bug(
        "sites are not told the width of their accumulators",
        "passes/insert_fake_quant.py",
        "site.accumulator_bits = self.accumulator_bits",
        "pass",
        ("tests/test_audit.py::test_bytes_do_not_and_are_told_what_would_hold_them",),
    ),
    Bug(
        "the reach of a code leaves one side of its zero point out",
        "fxquant/ops/accumulator.py",
        "return max(scheme.qmax - int(zero_point), int(zero_point) - scheme.qmin)",
        "return scheme.qmax - int(zero_point)",
        ("tests/test_audit.py::test_the_reach_of_a_code_is_that_of_its_far_side",),
    ),
    # ---------------------------------------------------------------- files for LiteRT
    Bug(
        "codes that are uint8 keep their zero point in a .tflite file",
        "fxquant/forms/tflite.py",
        "zero = 0 if grid is None else int(grid.zero_point) - lift(dtype)",
        "zero = 0 if grid is None else int(grid.zero_point)",
        (f"{TFLITE}::test_a_network_in_each_set_of_kernels",),
    ),
    Bug(
        "LiteRT's SAME is taken for torch's at a stride",
        "fxquant/forms/tflite_ways.py",
        "n == -(-length // step) and before == max((n - 1) * step + span - length, 0) // 2",
        "n == -(-length // step) and before == span // 2",
        (f"{TFLITE}::test_windows", f"{TFLITE}::test_convolutions"),
    ),
    Bug(
        "a dimension is looked for where torch has it, not where it lies",
        "fxquant/forms/tflite.py",
        "axis=x.order.index(axis))",
        "axis=axis)",
        (f"{TFLITE}::test_moves_between_convolutions_are_transposed_once",),
    ),
    Bug(
        "all divisors of a mean share the table of the first",
        "fxquant/forms/tflite_ways.py",
        "places: Tensor = which.reshape(divisor.shape).to(torch.int32) * len(sums) - int(sums[0])",
        "places: Tensor = torch.zeros(divisor.shape, dtype=torch.int32) - int(sums[0])",
        (f"{TFLITE}::test_windows", f"{TFLITE}::test_means_over_dimensions"),
    ),
    Bug(
        "sums that LiteRT shifts out of 32 bits are written",
        "fxquant/ops/layer.py",
        "left = (HIGH_MUL_SHIFT - n.shift).clamp(min=0)",
        "left = (HIGH_MUL_SHIFT - n.shift).clamp(max=0)",
        (f"{TFLITE}::test_sums_that_would_leave_32_bits_are_refused",),
    ),
    Bug(
        "the rounded sum of several terms has the scale that it was divided by",
        "fxquant/forms/tflite_ways.py",
        "y = replace(y, grid=call.output).copy",
        "pass",
        (f"{TFLITE}::test_sums_of_terms_with_scales_of_their_own",),
    ),
    # ---------------------------------------------------------------- resizing, rows, slopes
    Bug(
        "weights of a resize are cut off, not rounded",
        "fxquant/ops/interpolate.py",
        "math.floor(share * 2**bits + Fraction(1, 2))",
        "math.floor(share * 2**bits)",
        ("tests/test_reference.py::test_some_weights_of_a_resize_are_not_exact",),
    ),
    Bug(
        "a resize takes a factor for the sizes that it leads to",
        "fxquant/ops/interpolate.py",
        "(new, 1 / Fraction(factor))",
        "(new, Fraction(lengths[0], new))",
        ("tests/ops/test_interpolate.py::test_places_are_those_of_torch",),
    ),
    Bug(
        "a resize rounds along each dimension",
        "fxquant/ops/interpolate.py",
        "        total = total.index_select(axis, first) * (2**bits - weight) + above\n",
        "        total = total.index_select(axis, first) * (2**bits - weight) + above\n"
        "        total = ((total + 2 ** (bits - 1)) >> bits) << (bits if axis == 2 else 0)\n"
        "        total = total << bits if axis == 3 else total\n",
        ("tests/ops/test_interpolate.py::"
         "test_within_a_step_of_the_fraction_and_mostly_its_rounding",),
    ),
    Bug(
        "the second neighbour lies beyond the edge",
        "fxquant/ops/interpolate.py",
        "[min(i + 1, length - 1) for i in first]",
        "[min(i + 1, length) for i in first]",
        ("tests/ops/test_interpolate.py::"
         "test_weights_of_a_place_add_up_and_stay_between_the_neighbours",),
    ),
    Bug(
        "a slope for the codes above zero",
        "fxquant/ops/prelu.py",
        "torch.where(d > 0, above, below)",
        "torch.where(d < 0, above, below)",
        ("tests/ops/test_prelu.py::test_by_hand",),
    ),
    Bug(
        "indices are computed by quantized operators",
        "passes/canonicalize.py",
        " or node in index_nodes:",
        ":",
        ("tests/ops/test_embedding.py::"
         "test_the_table_is_a_constant_and_nothing_quantizes_indices",),
    ),
    Bug(
        "a convolution pads with copies in the order of its dimensions",
        "fxquant/ops/conv.py",
        "for pair in reversed(widths) for width in pair]",
        "for pair in widths for width in pair]",
        ("tests/ops/test_copies.py::test_a_convolution_is_the_one_behind_such_padding",),
    ),
    Bug(
        "multipliers of 15 bits",
        "fxquant/rounding.py",
        "MULTIPLIER_BITS = 31",
        "MULTIPLIER_BITS = 15",
        ("tests/test_intmath.py::test_multipliers_have_31_bits",),
    ),
    Bug(
        "multipliers of a sum one bit too long",
        "fxquant/rounding.py",
        "short_rescale(factors, 22 - max(len(factors) - 1, 1).bit_length(), most)",
        "short_rescale(factors, 24 - max(len(factors) - 1, 1).bit_length(), most)",
        ("tests/test_intmath.py::test_a_sum_of_rescaled_codes_fits_32_bits",),
    ),
    Bug(
        "a gradient passes where a ReLU is at 0",
        "fxquant/fake_quant/straight_through.py",
        "inside = max(first, _inwards(least, 1)),",
        "inside = max(first, least),",
        ("tests/test_fake_quant.py::test_limits_are_those_of_an_activation_before_it",),
    ),
    Bug(
        "a batch beyond the top of a range keeps no mask",
        "fxquant/fake_quant/straight_through.py",
        "if inside[0] <= extremes[0] and extremes[1] <= inside[1]:",
        "if inside[0] <= extremes[0]:",
        ("tests/test_fake_quant.py::"
         "test_gradients_are_torchs_wherever_a_batch_lies_in_the_range",),
    ),
    Bug(
        "eps is missing where a batch norm is folded",
        "fxquant/ops/batch_norm.py",
        "factor = torch.rsqrt(bn.running_var + bn.eps)",
        "factor = torch.rsqrt(bn.running_var)",
        (f"{REAL}[convs-default]", f"{UNCALIBRATED}[convs-fold]"),
    ),
    Bug(
        "the sign of a negative gamma goes into the scale",
        "fxquant/sites/call_site.py",
        "weights.scale * affine.factor.abs()",
        "weights.scale * affine.factor",
        (f"{REAL}[convs-default]",),
    ),
    Bug(
        "equalization forgets the bias",
        "passes/equalize_cross_layer.py",
        "(bias.detach().double() / out).to(bias.dtype)",
        "bias.detach()",
        (f"{UNCALIBRATED}[convs-equalize]",),
    ),
    Bug(
        "a clamp keeps its limits when its channels are scaled",
        "passes/equalize_cross_layer.py",
        "site.divide_clamp(per_channel)",
        "pass",
        (f"{UNCALIBRATED}[separable-equalize]", f"{UNCALIBRATED}[transposed-equalize]"),
    ),
    Bug(
        "equalization forgets that a sum ties its operands together",
        "passes/equalize_cross_layer.py",
        "self._unite(first.classes, value.classes)",
        "pass",
        (f"{UNCALIBRATED}[Residual-equalize]",),
    ),
    Bug(
        "weight scales along the wrong axis",
        "fxquant/schemes.py",
        "largest = channels.largest(weight",
        "largest = channels._replace(axis=1 - channels.axis).largest(weight",
        ("tests/test_schemes.py::test_weight_scales_by_hand",),
    ),
    Bug(
        "one weight scale for all channels of a depthwise convolution",
        "fxquant/schemes.py",
        "if not scheme.per_channel:",
        "if not scheme.per_channel or weight.shape[1] == 1:",
        ("tests/test_intmath.py::test_scales_lie_along_the_output_channels",),
    ),
    Bug(
        "the axis of the bound is not that of the channels",
        "fxquant/intmath.py",
        "rows = channels.rows(codes",
        "rows = channels._replace(axis=1 - channels.axis).rows(codes",
        ("tests/test_intmath.py::test_the_bound_follows_the_axis_of_the_output_channels",),
    ),
    Bug(
        "transposed convolution takes its channels along axis 0",
        "fxquant/ops/conv_transpose.py",
        "weight_axis=1,",
        "weight_axis=0,",
        (f"{REAL}[transposed_1d-default]", f"{REAL}[transposed-4 bits]"),
    ),
    Bug(
        "the channels of a transposed convolution are counted across its groups",
        "fxquant/schemes.py",
        "return by_group.flatten(2).flatten(0, 1)",
        "return by_group.flatten(2).transpose(0, 1).flatten(0, 1)",
        (f"{REAL}[transposed-default]",),
    ),
    Bug(
        "the bound looks at one sign only",
        "fxquant/intmath.py",
        "return torch.maximum(top, bottom).to(torch.int64)",
        "return top.to(torch.int64)",
        ("tests/test_intmath.py::test_no_partial_sum_exceeds_the_bound",),
    ),
    # ---------------------------------------------------------------- kernels
    Bug(
        "the certificate is ignored: float32 carries every sum",
        "fxquant/intmath.py",
        "plain and worst < FLOAT32_EXACT",
        "plain and worst < 2**31",
        (
            "tests/test_reference.py::test_sums_beyond_float32_are_exact",
            "tests/test_intmath.py::test_terms_that_cancel_need_the_wider_carrier",
        ),
    ),
    Bug(
        "floor instead of rounding half-up",
        "fxquant/rounding.py",
        "return (product + ((1 << shift) >> 1)).bitwise_right_shift_(shift)",
        "return product >> shift",
        (f"{REFERENCE}[convs-default]", f"{REAL}[convs-default]"),
    ),
    Bug(
        "means are rounded down",
        "fxquant/rounding.py",
        'torch.div(2 * total + divisor, 2 * divisor, rounding_mode="floor")',
        'torch.div(total, divisor, rounding_mode="floor")',
        (f"{REFERENCE}[means-default]", f"{REAL}[means-default]"),
    ),
    Bug(
        "means are rounded half away from zero",
        "fxquant/rounding.py",
        'torch.div(2 * total + divisor, 2 * divisor, rounding_mode="floor")',
        "total.sign() * ((2 * total.abs() + divisor) // (2 * divisor))",
        (f"{REFERENCE}[pools_2d-signed]",),
    ),
    Bug(
        "the second rounding of gemmlowp is half-up, as ruy's is",
        "fxquant/rounding.py",
        "shift_gemmlowp = _in_two_steps(shift_half_away)",
        "shift_gemmlowp = _in_two_steps(shift_half_up)",
        ("tests/test_rounding.py::test_forced_ties_of_a_shift",),
    ),
    Bug(
        "fp32_rne rounds its factor once, from float64",
        "fxquant/rounding.py",
        "reals=torch.float32,",
        "reals=torch.float64,",
        ("tests/test_rounding.py::test_fp32_rne_computes_in_float32_alone",),
    ),
    Bug(
        "fp32_rne adds the zero point of a sum after rounding",
        "fxquant/rounding.py",
        "    return _integer(torch.round(total))",
        "    return _integer(torch.round(total - y_zero)) + y_zero",
        ("tests/ops/test_rounding.py::test_sums_and_differences",),
    ),
    Bug(
        "an adaptive pool rounds codes, zero point and all",
        "fxquant/ops/average.py",
        "n.rounding.divide(*_fraction(total, elements, count, n)) + n.y_zero",
        "n.rounding.divide(*_fraction(total, elements, count, n), n.y_zero)",
        ("tests/ops/test_rounding.py::test_means",),
    ),
    Bug(
        "a mean over dimensions is rounded before its zero point is added",
        "fxquant/ops/average.py",
        "n.rounding.divide(*_fraction(total, elements, count, n), n.y_zero)",
        "n.rounding.divide(*_fraction(total, elements, count, n)) + n.y_zero",
        ("tests/ops/test_rounding.py::test_reductions_to_another_range",),
    ),
    Bug(
        "a tie of a division does not see what is added before",
        "fxquant/rounding.py",
        "odd = (up + zero) % 2 == 1",
        "odd = up % 2 == 1",
        ("tests/test_rounding.py::test_what_is_added_before_a_division_decides_ties",),
    ),
    Bug(
        "a resize shifts as a layer does, and not as LiteRT divides",
        "fxquant/ops/interpolate.py",
        "rounding.divide_shift(total, shift)",
        "rounding.shift(total, shift)",
        ("tests/ops/test_rounding.py::test_resizes",),
    ),
    Bug(
        "norms are rounded half-up in every mode",
        "fxquant/ops/moments.py",
        "n.rounding.shift(total, shift + units.bits)",
        "shift_half_up_(total, shift + units.bits)",
        ("tests/ops/test_rounding.py::test_norms",),
    ),
    Bug(
        "the worst case of LiteRT's sums leaves its shifts out",
        "fxquant/rounding.py",
        "worst -= -term * abs(multiplier) >> shift  # floored below 0",
        "worst += term * abs(multiplier)",
        ("tests/ops/test_laws.py::test_every_sum_is_proved_to_fit[add]",),
    ),
    Bug(
        "sites do not hear how to round",
        "passes/insert_fake_quant.py",
        "            module.rounding = self.rounding\n",
        "",
        (
            "tests/ops/test_laws.py::test_what_shifts_divides_or_looks_up_asks_the_rounding[add]",
        ),
    ),
    Bug(
        "real numbers are rounded half to even",
        "fxquant/schemes.py",
        "return torch.floor(x + 0.5)",
        "return torch.round(x)",
        ("tests/test_schemes.py::test_halves_are_rounded_up",),
    ),
    Bug(
        "convolutions pad with 0 instead of the zero point",
        "fxquant/ops/layer.py",
        "total = function(centred(codes, n.x_zero, kind), n.weight.to(kind), **settings)",
        "total = function(codes.to(kind), n.weight.to(kind), **settings)\n"
        "        sums = n.x_zero.to(kind) * n.weight.to(kind).flatten(1).sum(1)\n"
        "        total = total - intmath.per_channel(sums, -1 - spatial, total.dim())",
        (f"{REFERENCE}[convs-default]", f"{REAL}[convs-default]"),
    ),
    Bug(
        "constant padding with 0 instead of the constant's code",
        "fxquant/ops/pad.py",
        "_filled(fill, _rescaled(",
        "_filled(0, _rescaled(",
        (f"{REFERENCE}[constants-default]",),
    ),
    Bug(
        "the clamp behind constant padding leaves the constant out",
        "fxquant/ops/pad.py",
        "return n.fill.clamp(n.low, n.high)",
        "return n.fill",
        (f"{REFERENCE}[constants-symmetric]",),
    ),
    Bug(
        "padding with zeros puts code 0",
        "fxquant/ops/pad.py",
        "partial(_filled, int(call.numbers.zero))",
        "partial(_filled, 0)",
        (f"{REFERENCE}[constants-default]",),
    ),
    Bug(
        "the zero operator gives code 0",
        "fxquant/ops/zero.py",
        "return torch.zeros_like(codes) + n.zero.to(dtype)",
        "return torch.zeros_like(codes)",
        (f"{REFERENCE}[constants-default]",),
    ),
    Bug(
        "multipliers lie along the last axis of a convolution's output",
        "fxquant/ops/layer.py",
        "finish_layer(total, n, -1 - spatial, dtype)",
        "finish_layer(total, n, -1 if total.shape[-1] == len(n.bias) else -1 - spatial, dtype)",
        (f"{REFERENCE}[separable-default]",),
    ),
    Bug(
        "the operands of a concatenation are not rescaled",
        "fxquant/ops/cat.py",
        "rescale = Rescale(n.multiplier[i], n.shift[i])\n    x =",
        "rescale = Rescale(1 << n.shift[i], n.shift[i])\n    x =",
        (f"{REFERENCE}[joined-default]", f"{REAL}[joined-default]"),
    ),
    Bug(
        "a concatenation takes what the first operand's table leaves alone for all of them",
        "fxquant/ops/cat.py",
        "x if table is None else (way if compiled else table)(x)",
        "x if tables[0] is None else (way if compiled else tables[0])(x)",
        (f"{REFERENCE}[joined-default]",),
    ),
    Bug(
        "an int8 matmul forgets that its codes are 128 less",
        "fxquant/kernels/sums.py",
        "(centre - n.x_zero.long()) * rows.sum(1)",
        "-n.x_zero.long() * rows.sum(1)",
        ("tests/test_kernels.py::test_every_way_to_sum_a_convolution_is_exact",),
    ),
    Bug(
        "an int8 convolution pads with 0 instead of the zero point",
        "fxquant/kernels/sums.py",
        "_ways_to_pad(g, native=zero == 0)",
        "_ways_to_pad(g, native=True)",
        ("tests/test_kernels.py::test_every_way_to_sum_a_convolution_is_exact",),
    ),
    Bug(
        "a compiled concat takes a shorter multiplier without comparing it with the table",
        "fxquant/ops/cat.py",
        " or not torch.equal(short(table.stored), table.table)",
        "",
        ("tests/test_kernels.py::test_compiled_concats_are_those_by_table",),
    ),
    Bug(
        "float64 is trusted with products of more than 53 bits",
        "fxquant/kernels/finish.py",
        ".max()) <= FLOAT64_EXACT",
        ".max()) <= 8 * FLOAT64_EXACT",
        ("tests/test_kernels.py::test_float64_is_asked_only_where_it_is_exact",),
    ),
    Bug(
        "a kernel is kept when its numbers are written over",
        "fxquant/sites/integer.py",
        "self._seen != self._state_of_buffers()",
        "False",
        ("tests/test_kernels.py::test_kernels_follow_the_numbers[auto]",),
    ),
    Bug(
        "a part of a sum is taken for the whole, which the clamp limits",
        "fxquant/kernels/sums.py",
        "numbers=numbers, is_part=True",
        "numbers=numbers",
        ("tests/test_kernels.py::test_parts_are_exact_although_the_whole_is_clamped",),
    ),
    Bug(
        "the numbers that a kernel was made of make room for others",
        "fxquant/sites/integer.py",
        "self._read = frozenset(self.buffers())",
        "self._read = frozenset(buffer.clone() for buffer in self.buffers())",
        ("tests/test_kernels.py::test_kernels_follow_numbers_that_are_replaced_twice",),
    ),
    Bug(
        "half() rounds the multipliers of a converted network",
        "fxquant/sites/integer.py",
        "super()._apply(moved, recurse)",
        "super()._apply(fn, recurse)",
        ("tests/test_kernels.py::test_no_float_type_changes_an_integer",),
    ),
    Bug(
        "exponents of negative numbers have the sign in them",
        "fxquant/rounding.py",
        "(real.view(torch.int64) >> 52) & 0x7FF",
        "(real.view(torch.int64) >> 52) & 0xFFF",
        ("tests/test_rounding.py::test_exponents_are_those_of_frexp",),
    ),
    Bug(
        "a compiled eval() adds up whatever number of products",
        "fxquant/ops/matmul.py",
        "    _assert_fits(n, terms)\n",
        "",
        ("tests/test_compiled.py::test_products_that_may_leave_their_accumulator_are_refused",),
    ),
    Bug(
        "every operand of a sum has the first one's zero point",
        "fxquant/ops/operands.py",
        "centred(x, zero) for",
        "centred(x, n.x_zero[0]) for",
        (f"{REFERENCE}[readers-default]",),
    ),
    Bug(
        "shares that weigh others have 8 bits",
        "fxquant/sites/width.py",
        "if _weighs_others(gm, node):",
        "if False:",
        ("tests/passes/test_join_products.py",),
    ),
    Bug(
        "the factors of joined products are mixed up",
        "passes/join_products.py",
        "node.args = (*left, *right)",
        "node.args = (*left, *reversed(right))",
        ("tests/passes/test_join_products.py",),
    ),
    Bug(
        "a number that training sets later is baked in",
        "fxquant/graph/training.py",
        "        grown |= found.grown\n",
        "",
        ("tests/graph/test_live.py",),
    ),
    Bug(
        "what a call gives may steer another that is traced with it",
        "fxquant/graph/apart.py",
        "if ours.given is None or ours.gave is None or ours.gave != theirs.gave:",
        "if False:",
        ("tests/graph/test_training.py", "-k", "steer"),
    ),
    Bug(
        "products with small shares have short multipliers",
        "fxquant/ops/sum_of_products.py",
        "common_rescale(factors, MAX_SHIFT)",
        "common_rescale(factors, 30)",
        ("tests/ops/test_arithmetic.py", "-k", "shares"),
    ),
    Bug(
        "the weights of a sum are forgotten in integers",
        "fxquant/ops/weighted_sum.py",
        "sum_numbers(call, ratios * weights)",
        "sum_numbers(call, ratios)",
        ("tests/ops/test_laws.py", "-k", "weighted_sum"),
    ),
    Bug(
        "a partial sum's weights are lost when it is joined",
        "passes/join_adds.py",
        "factors.extend(_factors(x) if x in joined else [1.0])",
        "factors.extend([1.0] * len(inputs_of(x)) if x in joined else [1.0])",
        ("tests/passes/test_join_adds.py",),
    ),
    Bug(
        "plain tensors stay plain, and what is computed from them is a constant",
        "fxquant/graph/trace.py",
        "    register_tensors(model)\n",
        "",
        ("tests/graph/test_tensors.py",),
    ),
    Bug(
        "the clamp of a fused activation is dropped",
        "fxquant/sites/call_site.py",
        "scheme, clamp = q.scheme, self.activation or Clamp(-math.inf, math.inf)",
        "scheme, clamp = q.scheme, Clamp(-math.inf, math.inf)",
        (f"{REAL}[convs-symmetric]", f"{REAL}[readers-symmetric]"),
    ),
    Bug(
        "average pooling counts padding the other way round",
        "fxquant/ops/avg_pool.py",
        "return end - start if include_pad else",
        "return end - start if not include_pad else",
        (f"{REFERENCE}[pools_2d-default]", f"{REAL}[pools_2d-default]"),
    ),
    Bug(
        "windows beyond the padding count whole (ceil_mode)",
        "fxquant/ops/avg_pool.py",
        "end = (start + kernel).clamp(max=length + padding)",
        "end = start + kernel",
        (f"{REFERENCE}[pools_2d-default]",),
    ),
    Bug(
        "uneven cells of an adaptive pool end too early",
        "fxquant/ops/adaptive_avg_pool.py",
        "return -((-(i + 1) * length) // cells) - (i * length) // cells",
        "return ((i + 1) * length) // cells - (i * length) // cells",
        (f"{REFERENCE}[pools_2d-default]",),
    ),
    Bug(
        "autocast reaches the carriers",
        "fxquant/intmath.py",
        "if torch.is_autocast_enabled(device):",
        "if False:",
        ("tests/test_reference.py::test_autocast_does_not_reach_the_integers[convs]",),
    ),
    # ---------------------------------------------------------------- functions and arithmetic
    Bug(
        "the entries of a table are rounded down",
        "fxquant/ops/table.py",
        "results = rounding.nearest(real / y.scale.double()) + y.zero_point",
        "results = torch.floor(real / y.scale.double()) + y.zero_point",
        ("tests/ops/test_tables.py::test_every_code_is_rounded_correctly",),
    ),
    Bug(
        "tables are made in float32",
        "fxquant/ops/table.py",
        "function((codes - x.zero_point).double() * x.scale.double(), **call.options)",
        "function((codes - x.zero_point) * x.scale, **call.options)",
        ("tests/ops/test_tables.py",),
    ),
    Bug(
        "a range known beforehand is known before there is data",
        "fxquant/observers/base.py",
        "        if isinstance(calibrator, Statistical):\n",
        "        if hasattr(calibrator, 'low'):\n"
        "            self.low.fill_(calibrator.low)\n"
        "            self.high.fill_(calibrator.high)\n"
        "        if isinstance(calibrator, Statistical):\n",
        ("tests/test_observers.py::test_a_fixed_range_stays_from_the_first_batch_on",),
    ),
    Bug(
        "a range known beforehand forgets the activation behind it",
        "passes/insert_observers.py",
        "end if clamp is None else min(max(end, clamp.low), clamp.high) for end in site.op.range",
        "end for end in site.op.range",
        ("tests/passes/test_insert_observers.py",),
    ),
    Bug(
        "softmax shifts as far as it can",
        "fxquant/ops/softmax.py",
        "_MAX_SHIFT = 24",
        "_MAX_SHIFT = 44",
        ("tests/ops/test_softmax.py::test_many_columns_do_not_overflow",),
    ),
    Bug(
        "the exponentials of a softmax have 8 bits",
        "fxquant/ops/softmax.py",
        "ONE_BITS = 20",
        "ONE_BITS = 8",
        ("tests/ops/test_softmax.py::test_random_rows_are_within_one_step",),
    ),
    Bug(
        "a difference is a sum",
        "fxquant/ops/sub.py",
        "factors.new_tensor([1.0, -1.0])",
        "factors.new_tensor([1.0, 1.0])",
        (f"{REAL}[arithmetic-default]",),
    ),
    Bug(
        "multipliers of a difference are as large as its largest positive factor allows",
        "fxquant/rounding.py",
        "exponent_of(factors.abs().max())",
        "exponent_of(factors.max())",
        ("tests/test_intmath.py::test_common_multipliers_are_near",),
    ),
    Bug(
        "a number that is added stays in the input's steps",
        "fxquant/ops/affine.py",
        'call.options["offset"] / s_y)',
        'call.options["offset"] / s_x)',
        (f"{REAL}[arithmetic-default]",),
    ),
    Bug(
        "a number minus a tensor is the tensor minus the number",
        "fxquant/ops/affine.py",
        "(1.0, -numbers[1]) if x == 0 else (-1.0, numbers[0])",
        "(1.0, -numbers[1 - x])",
        ("tests/passes/test_canonicalize.py::test_rewrites",),
    ),
    Bug(
        "a quotient forgets the sign of what it divides by",
        "fxquant/ops/div.py",
        "above * torch.where(below < 0, -1, 1)",
        "above",
        ("tests/ops/test_arithmetic.py::test_every_quotient_is_rounded_correctly",),
    ),
    Bug(
        "matrix products are summed in float32 however many terms there are",
        "fxquant/ops/matmul.py",
        "self.carriers[wide or self.bound * terms >= FLOAT32_EXACT]",
        "self.carriers[wide or self.bound >= FLOAT32_EXACT]",
        ("tests/ops/test_matmul.py::test_sums_beyond_float32_are_exact",),
    ),
    Bug(
        "a leaky ReLU keeps factors from going through",
        "fxquant/ops/leaky_relu.py",
        "homogeneous=True",
        "homogeneous=False",
        ("tests/passes/test_equalize_cross_layer.py::test_ranges_meet",),
    ),
    # ---------------------------------------------------------------- graphs
    Bug(
        "batch norms are folded after they were fused",
        "fxquant/recipes.py",
        f"{FOLD}{FUSE}",
        f"{FUSE}{FOLD}",
        ("tests/test_reference.py::test_a_folded_network_has_no_batch_norm_left",),
    ),
    Bug(
        "observers come before activations are fused",
        "fxquant/recipes.py",
        f"{FUSE}{OBSERVE}",
        f"{OBSERVE}{FUSE}",
        ("tests/test_reference.py::test_nothing_moves_in_eval",),
    ),
    Bug(
        "sums are joined after activations were fused",
        "fxquant/recipes.py",
        f"{JOIN}            JoinProducts(),\n{SCALE}{FOLD}{FUSE}",
        f"{FOLD}{FUSE}{JOIN}            JoinProducts(),\n{SCALE}",
        ("tests/test_reference.py::test_a_chain_of_sums_is_one_sum_even_where_a_relu_follows",),
    ),
    Bug(
        "an in-place ReLU is taken for a pure one",
        "fxquant/graph/inplace.py",
        "return Form(node.target, node.args, node.kwargs) if overwrites else None",
        "return None",
        (f"{UNCALIBRATED}[Overwriting-default]",),
    ),
    # ---------------------------------------------------------------- eval() and convert
    Bug(
        "observers move in eval()",
        "fxquant/observers/base.py",
        "if self.training:",
        "if True:",
        ("tests/test_reference.py::test_nothing_moves_in_eval",),
    ),
    Bug(
        "a learned step may change sign",
        "fxquant/fake_quant/lsq.py",
        "return held(self.step.detach().abs(), self.scheme)\n\n    @property",
        "return self.step.detach()\n\n    @property",
        ("tests/edge_cases/test_ranges.py::test_case_55_wild_steps",),
    ),
    Bug(
        "a learned step forgets what rounding takes",
        "fxquant/fake_quant/learned.py",
        "slope = torch.where(inside, codes - ratio, at_ends)",
        "slope = torch.where(inside, codes, at_ends)",
        ("tests/test_fake_quant.py::test_the_gradient_of_a_learned_step",),
    ),
    Bug(
        "a learned step goes on following the data",
        "fxquant/fake_quant/learned.py",
        "if not self.ready:\n",
        "if True:\n",
        ("tests/test_fake_quant.py::test_a_loaded_step_goes_on_and_an_unready_one_starts_anew",),
    ),
    Bug(
        "a folded scale is no power of two",
        "fxquant/intmath.py",
        "s_w = next_power_of_two(s_w) if scheme.power_of_two else s_w",
        "s_w = s_w",
        ("tests/test_power_of_two.py::test_multipliers_are_shifts",),
    ),
    Bug(
        "short multipliers are shifted as if they were long",
        "fxquant/rounding.py",
        "return Rescale(multiplier >> spare, shift - spare)",
        "return Rescale(multiplier >> spare, shift)",
        ("tests/test_multiplier_bits.py::test_a_short_multiplier_is_the_nearest_of_its_bits",),
    ),
    Bug(
        "a dynamic range forgets its zero point",
        "fxquant/sites/quantized_layer.py",
        "centred(quantize(x, q), q.zero_point, kind)",
        "quantize(x, q).to(kind)",
        ("tests/test_modes.py::test_a_dynamic_linear_layer_by_hand",),
    ),
    Bug(
        "a key may stand twice in a file",
        "fxquant/records.py",
        "            if name in found:\n",
        "            if False:\n",
        ("tests/test_config_file.py::test_a_mistake_is_told_with_its_line",),
    ),
    Bug(
        "each rank has a statistic of its own",
        "fxquant/observers/base.py",
        "            batch = reduce(statistic.merge, of_ranks)\n",
        "",
        ("tests/test_calibrators.py::test_ranks_agree_on_what_one_process_would_find",),
    ),
    Bug(
        "histograms are merged as if their bins were equally wide",
        "fxquant/observers/histogram.py",
        "numbers = torch.arange(-_HALF, _HALF, device=statistics.device) >> shift",
        "numbers = torch.arange(-_HALF, _HALF, device=statistics.device)",
        ("tests/test_calibrators.py::test_a_histogram_does_not_know_batches_or_their_order",),
    ),
    Bug(
        "KL spreads a group over its empty bins, too",
        "fxquant/observers/kl.py",
        "filled.index_add_(0, group, (p > 0).to(p.dtype))",
        "filled.index_add_(0, group, torch.ones_like(p))",
        ("tests/test_calibrators.py::test_the_worked_example_of_kl",),
    ),
    Bug(
        "calibrate forgets what it replaced when a batch fails",
        "fxquant/calibration.py",
        "            quantizer.load_state_dict(state)\n",
        "            pass\n",
        ("tests/test_calibration.py::test_data_that_cannot_be_used_loses_nothing",),
    ),
    Bug(
        "an offset has the gradient of what is not clamped",
        "fxquant/fake_quant/learned.py",
        "(dy * ~inside).sum_to_size(offset.shape)",
        "(dy * inside).sum_to_size(offset.shape)",
        ("tests/test_fake_quant_laws.py::test_lsq_plus_in_plain_python",),
    ),
    Bug(
        "eval() takes the weights without what shapes them",
        "fxquant/sites/call_site.py",
        "real, scale = quant.transform(weight), quant.scale(weight)",
        "real, scale = weight, quant.scale(weight)",
        ("tests/test_fake_quant_laws.py::test_binary_and_ternary_by_hand",),
    ),
    Bug(
        "a power of two is rounded down",
        "fxquant/fake_quant/tqt.py",
        "log.detach().ceil()",
        "log.detach().floor()",
        ("tests/test_fake_quant_laws.py::test_tqt_by_hand",),
    ),
    Bug(
        "rounding is learned for the real inputs of a layer, not for those it has",
        "fxquant/reconstruction.py",
        "            given = _watched(prepared, inputs, [node.name for node in unit.inputs])",
        "            given = _watched(reference, inputs, [node.name for node in unit.inputs])",
        ("tests/test_reconstruction.py::test_what_is_left_alone",),
    ),
    Bug(
        "learned rounding moves the largest weights, too",
        "fxquant/fake_quant/adaptive.py",
        "codes = torch.where(self.fixed, self.nearest, codes)",
        "",
        ("tests/test_reconstruction.py::test_the_largest_weight_of_a_channel_stays",),
    ),
    Bug(
        "chance is biased",
        "fxquant/fake_quant/stochastic.py",
        "torch.rand_like(x, dtype=torch.float32) - 0.5",
        "torch.rand_like(x, dtype=torch.float32) - 0.4",
        ("tests/test_fake_quant_laws.py::test_chance_is_right_on_average",),
    ),
    Bug(
        "each rank has a range of its own",
        "fxquant/observers/base.py",
        "dist.all_reduce(ends, dist.ReduceOp.MAX)",
        "pass",
        ("tests/edge_cases/test_ranges.py::test_case_56_ranks_agree",),
    ),
    Bug(
        "eval() lets its input quantizers follow the data",
        "fxquant/sites/call_site.py",
        "pairs = zip(inputs, self.sources, strict=True)",
        "pairs = [(s.train()(x), s) for x, s in zip(inputs, self.sources, strict=True)]",
        ("tests/test_reference.py::test_nothing_moves_in_eval",),
    ),
    Bug(
        "convert works on the prepared network itself",
        "fxquant/api.py",
        "gm = _copied(copy.deepcopy, prepared).eval()",
        "gm = prepared.eval()",
        ("tests/test_reference.py::test_convert_leaves_the_prepared_network_as_it_is",),
    ),
    Bug(
        "convert derives weight codes with another scale than eval()",
        "passes/lower_to_integer.py",
        "        numbers, settings = site.numbers_and_settings(options)",
        "        if site.weight_quant is not None:\n"
        "            site.weight_quant.scale = lambda w: w.abs().flatten(1).amax(1) / 128\n"
        "        numbers, settings = site.numbers_and_settings(options)",
        (f"{EVAL}[convs-default]",),
    ),
    Bug(
        "eval() computes with the real weights",
        "fxquant/sites/call_site.py",
        "if not self.ready:",
        "if True:",
        (f"{EVAL}[convs-default]",),
    ),
    Bug(
        "a float slips through: a selection gives its carrier",
        "fxquant/ops/selection.py",
        "return function(codes.to(torch.float32), **settings).to(dtype)",
        "return function(codes.to(torch.float32), **settings)",
        (f"{NO_FLOAT}[pools_2d-default]",),
    ),
    # ---------------------------------------------------------------- the search
    Bug(
        "a search chooses none",
        "fxquant/darts/search.py",
        'if name != "none"]',
        'if name != ""]',
        ("tests/darts/test_search.py",),
    ),
    Bug(
        "edges are compared without the softmax",
        "fxquant/darts/search.py",
        ".double().softmax(-1).tolist()",
        ".double().tolist()",
        ("tests/darts/test_search.py",),
    ),
    Bug(
        "the weaker edge of a pair comes first",
        "fxquant/darts/search.py",
        "strength.__getitem__, reverse=True)",
        "strength.__getitem__)",
        ("tests/darts/test_search.py",),
    ),
    # ---------------------------------------------------------------- norms
    Bug(
        "eps of a norm counts once, not once a pair of values",
        "fxquant/ops/moments.py",
        "((n.epsilon * count) >> room) * count",
        "(n.epsilon * count) >> room",
        ("tests/ops/test_norms.py::test_layer_norm_by_hand",),
    ),
    Bug(
        "eps of a long row is shifted by a bit too many",
        "fxquant/ops/moments.py",
        "room = max(2 * (count - 1).bit_length() - 31, 0)",
        "room = max(2 * count.bit_length() - 31, 0)",
        ("tests/ops/test_norms.py::test_long_rows_beside_an_eps_as_large_as_codes",),
    ),
    Bug(
        "a norm subtracts no mean from its squares",
        "fxquant/ops/moments.py",
        " - total * total",
        "",
        ("tests/ops/test_norms.py::test_layer_norm_by_hand",),
    ),
    Bug(
        "the bits of eps are lost where it is larger than any variance",
        "fxquant/ops/moments.py",
        "(values**2 / 2)) + 1) >> 1).clamp(min=0)",
        "(values**2 / 2)) + 1) >> 1).clamp(0, 0)",
        ("tests/ops/test_norms.py::test_no_scale_overflows",),
    ),
    Bug(
        "a bias does not count when the shift of its norm is chosen",
        "fxquant/ops/moments.py",
        "exponent_of(larger)",
        "exponent_of(factor.abs().expand_as(larger))",
        ("tests/ops/test_norms.py::test_rows_of_equal_values_give_the_bias",),
    ),
    Bug(
        "a length is the sum of squares and eps, not the larger one",
        "fxquant/ops/moments.py",
        "keepdim=True), 1, torch.maximum)",
        "keepdim=True), 1, torch.add)",
        ("tests/ops/test_norms.py::test_normalize_by_hand",),
    ),
    Bug(
        "a square root is as the device rounds it",
        "fxquant/intmath.py",
        "root = root - (root * root > value).to(torch.int64)",
        "pass",
        ("tests/test_intmath.py::test_integer_root",),
    ),
    Bug(
        "groups of a norm are channels that lie apart",
        "fxquant/ops/group_norm.py",
        "grouped = codes.reshape(N, num_groups, C // num_groups, *places)",
        "grouped = codes.reshape(N, C // num_groups, num_groups, *places).transpose(1, 2)",
        (f"{REFERENCE}[norms-default]", "tests/ops/test_norms.py"),
    ),
    Bug(
        "of equal edges the later one wins",
        "fxquant/darts/search.py",
        "strongest = sorted(range(node + 2), key",
        "strongest = sorted(range(node + 1, -1, -1), key",
        ("tests/darts/test_search.py",),
    ),
    Bug(
        "reduction cells take the alphas of normal ones",
        "fxquant/darts/search.py",
        "reduction if cell.reduction else normal",
        "normal",
        ("tests/darts/test_search.py",),
    ),
    Bug(
        "the weights of a search are all parameters",
        "fxquant/darts/search.py",
        "if id(parameter) not in alphas]",
        "if parameter is not None]",
        ("tests/darts/test_search.py",),
    ),
    Bug(
        "pools in a search have no batch norm",
        "fxquant/darts/search.py",
        'if "pool" in name else op',
        'if "pond" in name else op',
        ("tests/darts/test_search.py",),
    ),
    # ---------------------------------------------------------------- transformers
    Bug(
        "a mask is not clamped to its floor",
        "passes/bound_masks.py",
        "bounded = gm.graph.call_function(torch.clamp, (mask, FLOOR))",
        "bounded = gm.graph.call_function(torch.clamp, (mask, 8 * FLOOR))",
        ("tests/passes/test_bound_masks.py",),
    ),
    Bug(
        "where fills the other places",
        "passes/bound_masks.py",
        "low, high = (FLOOR, 0.0) if fill.holds else (0.0, FLOOR)",
        "low, high = FLOOR, 0.0",
        ("tests/passes/test_bound_masks.py",),
    ),
    Bug(
        "masked scores have 8 bits",
        "fxquant/sites/width.py",
        "_HAND_ON = (ADD, CAT)",
        "_HAND_ON = ()",
        ("tests/passes/test_bound_masks.py",),
    ),
    Bug(
        "shapes are fixed and not asserted",
        "passes/fix_shapes.py",
        "        if number in self.guarded:",
        "        if True:",
        ("tests/passes/test_fix_shapes.py",),
    ),
    Bug(
        "a table of parameters is fixed as it is",
        "passes/fix_shapes.py",
        "if not self.by_shapes.issuperset(_ancestry(node, self.by_shapes)):",
        "if False:",
        ("tests/passes/test_fix_shapes.py",),
    ),
    Bug(
        "what is written to a part is not in the whole",
        "fxquant/graph/inplace.py",
        "                by_shapes |= _write_back(node, memory, order)\n",
        "                pass\n",
        ("tests/graph/test_decided.py",),
    ),
    Bug(
        "attention is not scaled",
        "fxquant/graph/attention.py",
        "    scale = (layer.width // layer.heads) ** -0.5\n",
        "    scale = 1.0\n",
        ("tests/graph/test_spell_out.py",),
    ),
    Bug(
        "keys and values change places",
        "fxquant/graph/attention.py",
        "return (F.linear(query, packed[:width], biases[0]), *_parts(both, 2))",
        "return (F.linear(query, packed[:width], biases[0]), *_parts(both, 2)[::-1])",
        ("tests/graph/test_spell_out.py",),
    ),
    Bug(
        "a causal mask lets the future through",
        "fxquant/graph/attention.py",
        "dtype=torch.bool).tril().logical_not()",
        "dtype=torch.bool).triu().logical_not()",
        ("tests/graph/test_spell_out.py",),
    ),
    Bug(
        "an einsum forgets the order of its result",
        "fxquant/graph/einsum.py",
        "    return _ordered(y, e.batch + e.rows + e.columns, e.result)\n",
        "    return y\n",
        ("tests/graph/test_spell_out.py",),
    ),
    Bug(
        "a class token is expanded in float",
        "passes/insert_observers.py",
        "    return (first, mover) if is_known(first) else (value, reader)\n",
        "    return value, reader\n",
        ("tests/test_transformers.py::test_a_training_step_and_integers[vit]",),
    ),
    Bug(
        "wrapped functions stay leaves",
        "fxquant/graph/wrapped.py",
        "            del wrapped[key]\n",
        "            pass\n",
        ("tests/graph/test_wrapped.py",),
    ),
    Bug(
        "a scale forgets the zero point",
        "fxquant/ops/scale.py",
        "d, rescale = centred(codes, n.x_zero),",
        "d, rescale = codes.to(torch.int64),",
        ("tests/passes/test_scale_by_parameters.py",),
    ),
    Bug(
        "a table of 16 bits ends too early",
        "fxquant/ops/softmax.py",
        "return int(min(steps, _NOTHING / float(x.scale) + 2))",
        "return int(min(steps, 0.3 * _NOTHING / float(x.scale) + 2))",
        ("tests/ops/test_softmax.py",),
    ),
    # ---------------------------------------------------------------- looking at networks
    Bug(
        "a fused activation does not say whose value the layer gives now",
        "passes/fuse_conv_bn_relu.py",
        "        set_source(gm, first, source_of(gm, readers[0]))\n",
        "",
        ("tests/see/test_compare.py::test_every_node_finds_its_counterpart_in_the_model",),
    ),
    Bug(
        "a node alone reads what came out before it",
        "fxquant/see/compare.py",
        "        alone.replace(node, measure.as_candidate(expected, value))\n",
        "",
        ("tests/see/test_compare.py::test_errors_add_up_as_it_runs_but_not_alone",),
    ),
    Bug(
        "what gives several tensors is not measured",
        "fxquant/see/measure.py",
        "        for part in zip(*every, unrounded, strict=True):\n",
        "        for part in zip(*every, unrounded, strict=True) if len(every[0]) == 1 else ():\n",
        ("tests/see/test_compare.py::test_what_gives_several_tensors_is_measured_too",),
    ),
    Bug(
        "a report measures first and says then that it cannot be written",
        "fxquant/see/report.py",
        '    ending_of(path, ("html",), "a report")\n',
        "",
        ("tests/see/test_report.py::test_where_it_cannot_be_written_is_said_before_any_work",),
    ),
    Bug(
        "a name ends the script of a page",
        "fxquant/see/page.py",
        'return text.replace("<", "\\\\u003c")',
        "return text",
        ("tests/see/test_visualize.py::test_names_do_not_end_the_script",),
    ),
    Bug(
        "a histogram forgets what lies outside the first batch",
        "fxquant/see/histogram.py",
        "torch.histc(x.clamp(self._low, self._high), BINS,",
        "torch.histc(x, BINS,",
        ("tests/see/test_report.py::test_a_histogram_by_hand",),
    ),
    Bug(
        "a copy of a watched network takes its log along",
        "fxquant/see/training_log.py",
        "    def __reduce__(self) -> Any:\n        return _Watch, (_look_away, self._name)\n",
        "",
        ("tests/see/test_training_log.py::test_a_watched_network_is_copied_without_its_log",),
    ),
    Bug(
        "saturation is counted at one end",
        "fxquant/see/training_log.py",
        "            at_end |= output <= low + less\n",
        "            pass\n",
        ("tests/see/test_training_log.py::test_saturation_by_hand",),
    ),
    # ---------------------------------------------------------------- phases
    Bug(
        "frozen ranges go on watching",
        "fxquant/sites/phase.py",
        "(quantizer if self.phase.observe else quantizer.frozen)(x, *limits)",
        "quantizer(x, *limits)",
        ("tests/test_phases.py::test_what_moves_in_each_phase",),
    ),
    Bug(
        "weights are rounded while ranges are only observed",
        "fxquant/sites/call_site.py",
        "if self.weight_quant is not None and self.phase.round:",
        "if self.weight_quant is not None:",
        ("tests/test_phases.py::test_observing_rounds_nothing",),
    ),
    Bug(
        "a forward that is run again for a backward is observed again",
        "fxquant/observers/base.py",
        "return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1",
        "return False",
        ("tests/loops/test_loops.py::test_gradient_checkpointing_changes_nothing",),
    ),
    # ---------------------------------------------------------------- compiled
    Bug(
        "every number of a grid learns at one rate, whatever its size",
        "fxquant/decay.py",
        "return float(number.detach().abs().mean())",
        "return 1.0",
        ("tests/loops/test_loops.py::test_each_number_of_a_grid_learns_at_a_share_of_what_it_is",),
    ),
    Bug(
        "grids with rates of their own lose weight, as the network does",
        "fxquant/decay.py",
        '"lr": grid_rate * _size(p, quantizer), "weight_decay": 0.0}',
        '"lr": grid_rate * _size(p, quantizer)}',
        ("tests/loops/test_loops.py::test_each_number_of_a_grid_learns_at_a_share_of_what_it_is",),
    ),
    Bug(
        "compiled sums are taken for those of small weights",
        "fxquant/ops/layer.py",
        "return terms * 128 * 255",
        "return terms * 64 * 255",
        ("tests/test_compiled.py::test_sums_beyond_float32_are_exact",),
    ),
    Bug(
        "compiled products of matrices are taken for those of a short row",
        "fxquant/ops/matmul.py",
        "worst=terms * 255 * 255",
        "worst=a.shape[-2] * 255 * 255",
        ("tests/test_compiled.py::test_products_beyond_float32_are_exact",),
    ),
    Bug(
        "eval() forgets to note that there are ranges",
        "fxquant/observers/base.py",
        """        super().train(mode)
        self._note_for_eval()""",
        "        super().train(mode)",
        ("tests/test_compiled.py::test_before_any_data_it_is_the_float_network_then_no_more",),
    ),
    Bug(
        "ranges that are loaded are not noted",
        "fxquant/observers/base.py",
        """        super()._load_from_state_dict(*arguments)
        self._note_for_eval()""",
        "        super()._load_from_state_dict(*arguments)",
        ("tests/test_compiled.py::test_ranges_that_come_while_it_is_in_eval[state_dict]",),
    ),
    # ---------------------------------------------------------------- files
    Bug(
        "a file may call any method",
        "fxquant/saved/callables.py",
        """    if node.op == "call_method":
        _check(""",
        """    if node.op == "no call":
        _check(""",
        (f"{DAMAGED}[a private method]",),
    ),
    Bug(
        "names of modules go into code as they are",
        "fxquant/saved/modules.py",
        "    require_name(name, path)\n",
        "",
        (f"{DAMAGED}[a path with code]",),
    ),
    Bug(
        "the digest is not compared",
        "fxquant/saved/container.py",
        "if _digest(text, tensors) != digest:",
        "if digest is None:",
        ("tests/saved/test_damaged_files.py::test_messages_say_which_of_the_three_it_is",),
    ),
    Bug(
        "a tied parameter comes back twice",
        "fxquant/saved/tensors.py",
        "tensor = None if key is None else made.get(key)",
        "tensor = None",
        ("tests/saved/test_files.py::test_what_is_tied_stays_tied",),
    ),
    Bug(
        "yaml_that_runs_code",
        "fxquant/records.py",
        "node = yaml.compose(text, loader)",
        "node = yaml.compose(yaml.dump(yaml.unsafe_load(text)), loader)",
        ("tests/test_safety.py::test_runs_nothing_that_it_reads",),
    ),
    Bug(
        "page_that_promises_too_much",
        "docs/concepts/flow.md",
        "layer_1 reads layer.weight",
        "layer_1 reads layer_1.weight",
        ("tests/test_snippets.py::test_runs[docs/concepts/flow.md]",),
    ),
    Bug(
        "page_with_a_name_that_is_gone",
        "docs/guides/keep_float.md",
        'keep_float=("best",))',
        'float_leaves=("best",))',
        ("tests/test_snippets.py::test_runs[docs/guides/keep_float.md]",),
    ),
    # ---------------------------------------------------------------- the ways out
    Bug(
        "the high byte of a long code weighs one less",
        "fxquant/forms/onnx.py",
        "total.to(torch.int64) * 256",
        "total.to(torch.int64) * 255",
        ("tests/export/test_onnx.py::test_codes_of_two_bytes",),
    ),
    Bug(
        "weights of five bits are stored in four",
        "fxquant/forms/onnx.py",
        "(codes < low + 16)",
        "(codes < low + 32)",
        ("tests/export/test_onnx.py::test_weights_of_4_bits_are_stored_in_4",),
    ),
    Bug(
        "a mean is divided in float64 where that is not exact",
        "fxquant/ops/average.py",
        "2 ** (49 - y_bits)",
        "2 ** (60 - y_bits)",
        ("tests/ops/test_quotient.py",),
    ),
    Bug(
        "a folder is written where ONNX was asked for",
        "fxquant/command/export.py",
        'if self.out.suffix == ".onnx":',
        'if self.out.suffix == ".onx":',
        ("tests/command/test_cli.py::test_export",),
    ),
    Bug(
        "what is saved by command is not said",
        "fxquant/cli.py",
        'print(f"saved in {out}")',
        'print("saved")',
        ("tests/command/test_guide.py",),
    ),
    Bug(
        "`fxquant quantize` leaves the integers unevaluated",
        "fxquant/command/quantize.py",
        'after = scores(quantized, job.images, bars, "integers")',
        'after = None',
        ("tests/command/test_guide.py",),
    ),
    Bug(
        "a field of a public record has no word in its docstring",
        "fxquant/layer_costs.py",
        "one of `layers` at a time, with each of `bits`;",
        "one layer at a time;",
        ("tests/test_public_names.py",),
    ),
    Bug(
        "an argument of a public function has no word in its docstring",
        "fxquant/config_file.py",
        "Write every field of `config` to `path`, as YAML",
        "Write every field as YAML",
        ("tests/test_public_names.py",),
    ),
    Bug(
        "an exported file has the batch of its example",
        "fxquant/export/walk.py",
        "_BATCHES = (2, 3, 6)",
        "_BATCHES = (2, 2, 2)",
        ("tests/export/test_onnx.py::test_names_metadata_and_a_batch_of_any_size",),
    ),
    Bug(
        "half of two rows, and of three, is one",
        "fxquant/export/walk.py",
        "_BATCHES = (2, 3, 6)",
        "_BATCHES = (2, 3, 3)",
        ("tests/export/test_onnx.py::test_what_moves_elements_by_how_many_rows_there_are",),
    ),
    Bug(
        "all but the last row are all",
        "fxquant/export/moves.py",
        "    end = None if _all_behind(ends, sizes) and not same else _place(ends, sizes)",
        "    end = None if not same else _place(ends, sizes)",
        ("tests/export/test_onnx.py::test_what_moves_rows",),
    ),
    Bug(
        "C code takes what moves from picture to picture",
        "fxquant/export/c.py",
        "            _need_rows_kept(walk, of_two, node)\n",
        "",
        (
            "tests/export/test_bundle.py"
            "::test_pictures_that_have_to_do_with_each_other_have_no_c",
        ),
    ),
    Bug(
        "an engine's concat multiplies by the quotient of scales",
        "fxquant/ops/cat.py",
        "if not torch.equal(divided, _rescaled(n, call.dtype, i, codes)):",
        "if False:",
        ("tests/export/test_onnx.py::test_concats_of_ties",),
    ),
    Bug(
        "verify compares in the type of the network's codes",
        "fxquant/export/verify.py",
        "ours.double(), theirs.double()",
        "ours.double(), theirs.to(ours.dtype).double()",
        (f"{VERIFY}::test_a_code_that_the_type_of_ours_does_not_hold_is_another_one",),
    ),
    Bug(
        "verify counts the elements of the last batch",
        "fxquant/export/verify.py",
        "before.elements + a.numel()",
        "a.numel()",
        (f"{VERIFY}::test_batches_that_are_equal_count_as_well",),
    ),
    Bug(
        "pixels become channels column by column",
        "fxquant/forms/qdq.py",
        "in_blocks.permute(0, 3, 5, 1, 2, 4)",
        "in_blocks.permute(0, 5, 3, 1, 2, 4)",
        ("tests/export/test_onnx.py::test_first_layers_are_arranged_for_engines",),
    ),
    Bug(
        "a buffer of C code ends before it is read last",
        "fxquant/export/c_writer.py",
        "found.last = len(self.steps)",
        "found.last = len(self.steps) - 1",
        ("tests/export/test_bundle.py::test_c_gives_every_golden_integer",),
    ),
    # ---------------------------------------------------------------- examples
    Bug(
        "an operator of one's own has the table of another",
        "examples/07_add_an_operator.py",
        "table_numbers(mish)",
        "SILU.numbers",
        ("tests/test_examples.py::test_an_operator_of_ones_own_computes_what_it_stands_for",),
    ),
    Bug(
        "each rank trains by itself",
        "examples/06_ddp.py",
        "parallel = DistributedDataParallel(prepared)",
        "parallel = prepared",
        ("tests/test_examples.py::test_processes_agree",),
    ),
    Bug(
        "the loop ends with the prepared network",
        "examples/04_existing_loop_qat.py",
        "model = fxquant.convert(model)\n",
        "",
        ("tests/test_examples.py::test_five_lines_make_a_loop_one_that_ends_in_integers",),
    ),
    # ---------------------------------------------------------------- other people's loops
    Bug(
        "Lightning: each epoch is the first",
        "fxquant/integrations/lightning.py",
        "self._let_begin(pl_module, self.plan.after(trainer.current_epoch))",
        "self._let_begin(pl_module, self.plan.after(0))",
        ("tests/integrations/test_lightning.py::test_each_epoch_has_its_phase",),
    ),
    Bug(
        "Lightning: a second path to a weight keeps the old one",
        "fxquant/integrations/lightning.py",
        "        self._refuse_sharing(pl_module, net)\n",
        "",
        ("tests/integrations/test_lightning.py::test_mistakes_are_told[shared weights]",),
    ),
    Bug(
        "Lightning: a network is prepared for fit alone",
        "fxquant/integrations/lightning.py",
        "        net = self._find(pl_module)\n",
        "        net = self._find(pl_module)\n        if stage != 'fit':\n            return\n",
        ("tests/integrations/test_lightning.py::test_a_checkpoint_is_tested_and_loaded",),
    ),
    Bug(
        "a frozen batch norm that does more is live",
        "fxquant/graph/norms.py",
        ' and given["training"] is self.norm.training',
        "",
        ("tests/graph/test_norms.py::test_kept[Frozen]",),
    ),
    Bug(
        "a batch norm that does more has its own eps",
        "fxquant/graph/norms.py",
        'same = float(given["eps"]) == float(self.norm.eps)',
        "same = True",
        (
            "tests/graph/test_norms.py::"
            "test_one_that_counts_and_normalises_otherwise_is_refused",
        ),
    ),
    # ---------------------------------------------------------------- wrong uses
    Bug(
        "the mean of an empty batch divides by 0",
        "fxquant/ops/mean.py",
        "count = max(codes.numel() // max(total.numel(), 1), 1)",
        "count = codes.numel() // max(total.numel(), 1)",
        ("tests/ops/test_averages.py::test_the_mean_of_nothing_is_0",),
    ),
    Bug(
        "a tag that does not fit its text leads out of the YAML reader",
        "fxquant/records.py",
        "except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:",
        "except (yaml.YAMLError, ValueError) as error:",
        ("tests/test_config_file.py::test_a_mistake_is_told_with_its_line",),
    ),
    Bug(
        "of complex numbers the real part is quantized",
        "fxquant/rounding.py",
        "if isinstance(x, Tensor) and x.is_complex():",
        "if isinstance(x, Tensor) and x.dim() > 9:",
        ("tests/test_errors.py::test_a_wrong_use_is_told_what_where_and_what_to_do",),
    ),
    Bug(
        "a short text of statistics may fill the memory",
        "fxquant/statistics_file.py",
        "if len(found) > _MOST:",
        "if len(found) > _MOST**2:",
        ("tests/test_statistics_file.py::test_data_that_is_none",),
    ),
)


def planted(bug: Bug, source: str) -> str:
    """The source with the bug in it. A ValueError if the text is not there exactly once."""
    count = source.count(bug.old)
    if count != 1:
        raise ValueError(
            f"'{bug.name}': its text stands {count} times in {bug.file}, not once.\n"
            f"What to do: plant the bug where that code is now.\n{bug.old}"
        )
    changed = source.replace(bug.old, bug.new)
    if bug.file.endswith(".py"):
        compile(changed, bug.file, "exec")  # a mistyped bug would be found for the wrong reason
    return changed


def _left_out(folder: str, names: list[str]) -> list[str]:
    """Caches, and fxquant/passes where somebody has linked it already."""
    return [
        name for name in names if name == "__pycache__" or (Path(folder) / name).is_symlink()
    ]


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of what tests need, with passes/ where it is imported from."""
    with tempfile.TemporaryDirectory(prefix="planted_bugs_") as name:
        tree = Path(name)
        for folder in ("fxquant", "passes", "tests", "docs", "examples"):
            shutil.copytree(ROOT / folder, tree / folder, ignore=_left_out)
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / file, tree)
        (tree / "fxquant" / "passes").symlink_to(tree / "passes", target_is_directory=True)
        yield tree


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the copied tree, which must be what `import fxquant` finds there."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        # two versions of a file may have one size and one second: no caches
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True
    )


def run_tests(tree: Path, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Those tests in the copied tree, until the first failure."""
    # plain asserts: nobody reads their details, and to rewrite them takes a second each time
    return run(tree, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--assert=plain", *tests)


def check_imports(tree: Path) -> None:
    """Fail unless the copied tree is the one under test."""
    where = "import fxquant, fxquant.passes as p; print(fxquant.__file__); print(p.__file__)"
    found = run(tree, "-c", where).stdout.split()
    if len(found) != 2 or not all(Path(f).is_relative_to(tree.resolve()) for f in found):
        raise RuntimeError(f"tests would import {found}, not the copy in {tree}")


def caught_by(tree: Path, bug: Bug) -> str | None:
    """The first test that fails with the bug in the copied tree; None if none does."""
    path = tree / bug.file
    sound = path.read_text()
    path.write_text(planted(bug, sound))
    try:
        result = run_tests(tree, bug.tests)
    finally:
        path.write_text(sound)
    failed = re.search(r"^(?:FAILED|ERROR) \S*?::(.+?)(?: - |$)", result.stdout, re.MULTILINE)
    return failed[1] if result.returncode == 1 and failed else None


def main(words: list[str]) -> int:
    """Plant the bugs whose name holds one of `words`, or all; the exit code."""
    bugs = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    started = time.monotonic()
    survivors = 0
    with copied_tree() as tree:
        check_imports(tree)
        sound = run_tests(tree, dict.fromkeys(test for bug in bugs for test in bug.tests))
        if sound.returncode != 0:
            print(sound.stdout[-3000:], sound.stderr[-3000:], sep="\n")
            print("Without any bug these tests must pass.")
            return 1
        width = max(len(bug.name) for bug in bugs)
        for bug in bugs:
            test = caught_by(tree, bug)
            survivors += test is None
            print(f"{bug.name:{width}}  {'SURVIVES' if test is None else test}", flush=True)
    seconds = time.monotonic() - started
    print(f"{len(bugs)} bugs planted, {survivors} survived, {seconds:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
