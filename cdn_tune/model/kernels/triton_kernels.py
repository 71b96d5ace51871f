"""Triton kernels of the convolution with a kernel per sample: mix, multiply, end the layer, and the gradients.

Imported only where Triton is installed. Mixing and its gradient read and write memory once and are bound by that; the
products are matrix products whose operands are gathered from the map, cell by cell, without a copy of it in memory.
Loops over products run a number of turns that is known when they are compiled: where a loop may run no turn at all,
tensor cores of Hopper wait for each product before the next one begins.

Shape letters: B samples, N = S² cells, C channels, E experts, K kernel size, T = K² taps, R samples times shares of a
sum. All tensors are contiguous but where strides are given; offsets of samples and taps are 64 bits wide.
"""

import triton
import triton.language as tl


@triton.jit
def mix_kernel(
    weight,
    mixture,
    out,
    samples,
    size,
    sample_stride,
    tap_stride,
    out_stride,
    INPUTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    PADDED: tl.constexpr,
    REVERSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes mixed kernels: out[b, t, o, i] = sum over e of mixture[b, e] weight[t, e, o, i].

    Experts' weights are read once for all samples; sums are float32. `size` is the number of weights of a tap, INPUTS
    that of input channels, PADDED the power of two from EXPERTS on. Tap T-1-t is written for t if REVERSED.
    """
    tap, taps = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.arange(0, PADDED)
    inside = place < size
    at = weight + (tap * EXPERTS + expert)[:, None] * size + place[None, :]
    weights = tl.load(at, mask=(expert < EXPERTS)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    target = taps - 1 - tap if REVERSED else tap
    to = out + target * tap_stride + (place // INPUTS) * out_stride + place % INPUTS
    for sample in range(samples):
        share = tl.load(mixture + sample * EXPERTS + expert, mask=expert < EXPERTS, other=0.0)
        mixed = tl.sum(weights * share[:, None], axis=0)
        tl.store(to, mixed.to(out.dtype.element_ty), mask=inside)
        to += sample_stride


@triton.jit
def unmix_kernel(
    weight,
    mixture,
    grad,
    weight_grad,
    mixture_grad,
    rows,
    taps,
    size,
    row_stride,
    tap_stride,
    out_stride,
    INPUTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes both gradients of the mixture in one pass over the gradient of mixed kernels and the experts' weights.

    weight_grad[t, e, o, i] = sum over r of mixture[r, e] grad[r, t, o, i], added to what is there if ADD;
    mixture_grad[p, r, e] = this program's part of the sum over t, o, i of grad[r, t, o, i] weight[t, e, o, i].

    ROWS and PADDED are powers of two, 16 at least, from `rows` and EXPERTS on.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    row, expert = tl.arange(0, ROWS), tl.arange(0, PADDED)
    pairs = (row < rows)[:, None] & (expert < EXPERTS)[None, :]
    shares = tl.load(mixture + row[:, None] * EXPERTS + expert[None, :], mask=pairs, other=0.0)  # [ROWS, PADDED]
    sums = tl.zeros((ROWS, PADDED), dtype=tl.float32)
    blocks = tl.cdiv(size, BLOCK)
    for block in range(program, taps * blocks, programs):
        tap = (block // blocks).to(tl.int64)
        place = block % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = place < size
        at = grad + row.to(tl.int64)[:, None] * row_stride + tap * tap_stride
        at += ((place // INPUTS) * out_stride + place % INPUTS)[None, :]
        grads = tl.load(at, mask=(row < rows)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        where = (tap * EXPERTS + expert)[:, None] * size + place[None, :]
        kept = (expert < EXPERTS)[:, None] & inside[None, :]
        weights = tl.load(weight + where, mask=kept, other=0.0).to(tl.float32)
        found = tl.dot(tl.trans(shares), grads, input_precision=PRECISION)  # [PADDED, BLOCK]
        if ADD:
            found += tl.load(weight_grad + where, mask=kept, other=0.0)
        tl.store(weight_grad + where, found, mask=kept)
        sums = tl.dot(grads, tl.trans(weights), sums, input_precision=PRECISION)
    tl.store(mixture_grad + (program * rows + row[:, None]) * EXPERTS + expert[None, :], sums, mask=pairs)


@triton.jit
def convolve_kernel(
    maps,
    kernels,
    out,
    listed,
    count,
    bias,
    added,
    factors,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    BACKWARD: tl.constexpr,
    LISTED: tl.constexpr,
    EPILOGUE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Convolves maps [B, N, C] with kernels [B, T, C, C] (tap, out, in): out[s, b, cell, n], one row per cell.

    The sum over taps and channels is shared out among SPLIT programs s, whose parts are added afterwards. BACKWARD
    gives the gradient of the input instead: `maps` is that of the output, taps are taken in reverse, and kernels
    from their outputs to their inputs. If LISTED, only the `count` cells in `listed` are computed and written; else
    `count` is their number, N. EPILOGUE, without shares, gives max(0, (out + bias[b, n] + added[b, cell, n])
    factors[cell]), without `added` if not RESIDUAL.
    """
    cells: tl.constexpr = SIDE * SIDE
    taps: tl.constexpr = KERNEL * KERNEL
    row_tiles = tl.cdiv(count, ROWS)
    depth_blocks: tl.constexpr = (CHANNELS + DEPTH - 1) // DEPTH
    turns: tl.constexpr = taps * depth_blocks
    each: tl.constexpr = (turns + SPLIT - 1) // SPLIT
    sample, share = tl.program_id(1).to(tl.int64), tl.program_id(2)
    # Row tiles of a sample are neighbours, so that its kernels come from memory once.
    place = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    cell = tl.load(listed + place, mask=place < count, other=0) if LISTED else place
    column = tl.program_id(0) // row_tiles * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    row, col = cell // SIDE, cell % SIDE
    maps += sample * (cells * CHANNELS)
    kernels += sample * (taps * CHANNELS * CHANNELS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for turn in range(each):
        step = share * each + turn
        some = count
        if turns % SPLIT != 0:  # a share's last turns may be beyond the end: then of no cell
            some = tl.where(step < turns, count, 0)
            step = tl.minimum(step, turns - 1)
        tap = step // depth_blocks
        channel = step % depth_blocks * DEPTH + depth
        r, c = row + tap // KERNEL - KERNEL // 2, col + tap % KERNEL - KERNEL // 2
        seen = (place < some) & (r >= 0) & (r < SIDE) & (c >= 0) & (c < SIDE)
        at = maps + (r * SIDE + c)[:, None] * CHANNELS + channel[None, :]
        if CHANNELS % DEPTH == 0:
            values = tl.load(at, mask=seen[:, None], other=0.0)
        else:
            values = tl.load(at, mask=seen[:, None] & (channel < CHANNELS)[None, :], other=0.0)
        if BACKWARD:
            to = kernels + (taps - 1 - tap) * (CHANNELS * CHANNELS) + channel[:, None] * CHANNELS + column[None, :]
        else:
            to = kernels + tap * (CHANNELS * CHANNELS) + column[None, :] * CHANNELS + channel[:, None]
        if (CHANNELS % DEPTH == 0) and (CHANNELS % COLUMNS == 0):
            taken = tl.load(to)
        else:
            taken = tl.load(to, mask=(channel < CHANNELS)[:, None] & (column < CHANNELS)[None, :], other=0.0)
        total = tl.dot(values, taken, total, input_precision=PRECISION)
    out += (share * tl.num_programs(1) + sample) * (cells * CHANNELS)
    if EPILOGUE:
        factor = tl.load(factors + cell, mask=place < count, other=0.0)[:, None]
        # By halves of the columns: what is added to a whole tile of 256 finds no room in registers beside it.
        left, right = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        for half in tl.static_range(2):
            found = left if half == 0 else right
            where = tl.program_id(0) // row_tiles * COLUMNS + half * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
            to = cell[:, None] * CHANNELS + where[None, :]
            kept = (place < count)[:, None] & (where < CHANNELS)[None, :]
            found += tl.load(bias + sample * CHANNELS + where, mask=where < CHANNELS, other=0.0).to(tl.float32)[None, :]
            if RESIDUAL:
                found += tl.load(added + sample * (cells * CHANNELS) + to, mask=kept, other=0.0).to(tl.float32)
            found = tl.maximum(found * factor, 0.0, propagate_nan=tl.PropagateNan.ALL)  # training stops by NaN
            tl.store(out + to, found.to(out.dtype.element_ty), mask=kept)
    else:
        kept = (place < count)[:, None] & (column < CHANNELS)[None, :]
        to = out + cell[:, None] * CHANNELS + column[None, :]
        tl.store(to, total.to(out.dtype.element_ty), mask=kept)


@triton.jit
def gate_kernel(
    grad,
    out,
    factors,
    gated,
    rounded,
    sums,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes the gradient before an epilogue, of that after it: 0 where out <= 0, else grad[b, cell, c] factors[cell].

    It is written twice, if the types of `gated` and `rounded` differ. sums[b, p, c] = this program's part of its sum
    over cells.
    """
    sample, program = tl.program_id(2).to(tl.int64), tl.program_id(0)
    cell = program * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    kept = (cell < CELLS)[:, None] & (column < CHANNELS)[None, :]
    at = sample * (CELLS * CHANNELS) + cell[:, None] * CHANNELS + column[None, :]
    factor = tl.load(factors + cell, mask=cell < CELLS, other=0.0)[:, None]
    found = tl.load(grad + at, mask=kept, other=0.0).to(tl.float32) * factor
    found = tl.where(tl.load(out + at, mask=kept, other=0.0) <= 0, 0.0, found)
    tl.store(gated + at, found.to(gated.dtype.element_ty), mask=kept)
    if rounded.dtype != gated.dtype:
        tl.store(rounded + at, found.to(rounded.dtype.element_ty), mask=kept)
    part = sums + (sample * tl.num_programs(0) + program) * CHANNELS + column
    tl.store(part, tl.sum(found, axis=0), mask=column < CHANNELS)


@triton.jit
def kernels_gradient_kernel(
    maps,
    grad,
    out,
    listed,
    count,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    LISTED: tl.constexpr,
    TURNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the gradient of kernels: out[s, b, t, o, i] = sum over cells of grad[b, cell, o] maps[b, cell + t, i].

    Each of the programs s sums its share of the cells, in TURNS turns; the shares go on as if they were further
    samples. If LISTED, the `count` cells in `listed` are summed over; else `count` is their number, N.
    """
    cells: tl.constexpr = SIDE * SIDE
    row_tiles: tl.constexpr = (CHANNELS + ROWS - 1) // ROWS
    column_tiles: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    sample, share = tl.program_id(1).to(tl.int64), tl.program_id(2)
    tap = program // (row_tiles * column_tiles)
    output = program // column_tiles % row_tiles * ROWS + tl.arange(0, ROWS)
    channel = program % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    down, across = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
    maps += sample * (cells * CHANNELS)
    grad += sample * (cells * CHANNELS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for turn in range(TURNS):  # the last ones may be beyond the end: then of no cell
        place = (share * TURNS + turn) * DEPTH + tl.arange(0, DEPTH)
        cell = tl.load(listed + place, mask=place < count, other=0) if LISTED else place
        r, c = cell // SIDE + down, cell % SIDE + across
        seen = (place < count) & (r >= 0) & (r < SIDE) & (c >= 0) & (c < SIDE)
        at = grad + cell[:, None] * CHANNELS + output[None, :]
        grads = tl.load(at, mask=seen[:, None] & (output < CHANNELS)[None, :], other=0.0)
        at = maps + (r * SIDE + c)[:, None] * CHANNELS + channel[None, :]
        values = tl.load(at, mask=seen[:, None] & (channel < CHANNELS)[None, :], other=0.0)
        total = tl.dot(tl.trans(grads), values, total, input_precision=PRECISION)
    out += ((share * tl.num_programs(1) + sample) * (KERNEL * KERNEL) + tap) * (CHANNELS * CHANNELS)
    kept = (output < CHANNELS)[:, None] & (channel < CHANNELS)[None, :]
    tl.store(out + output[:, None] * CHANNELS + channel[None, :], total.to(out.dtype.element_ty), mask=kept)
