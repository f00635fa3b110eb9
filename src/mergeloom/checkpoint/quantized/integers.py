"""Which tensors are packed integers: those of compressed-tensors, GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mergeloom.checkpoint.quantized.packed import AWQ_ORDER, Packed
from mergeloom.checkpoint.quantized.pool import Pool
from mergeloom.checkpoint.views import permuted

PACKED_BITS = (2, 4, 8)
GPTQ_BITS = (2, 3, 4, 8)


def take_packed(pool: Pool) -> None:
    """``weight_packed`` of compressed-tensors: words along the rows."""
    for stem in pool.ending("_packed"):
        if pool.left[f"{stem}_packed"].dtype == "I32":
            _take_packed(pool, stem)


def _take_packed(pool: Pool, name: str) -> None:
    codes, scale = pool.take(f"{name}_packed"), pool.take(f"{name}_scale")
    zero, group_of = pool.take(f"{name}_zero_point"), pool.take(f"{name}_g_idx")
    stated = pool.take(f"{name}_shape")
    if codes is None or len(codes.shape) != 2:
        pool.wrong(f"{name}_packed", codes, "is not a matrix of words")
        return
    rows, width = codes.shape
    if scale is None or len(scale.shape) != 2 or scale.shape[0] != rows or not scale.shape[1]:
        pool.fits(f"{name}_scale", scale, (rows, 1))
        return
    groups = scale.shape[1]
    found = _bits(pool, width, groups)
    if found is None:
        kinds = ", ".join(str(bits) for bits, _ in _stated_groups(pool)) or "no number of"
        pool.wrong(f"{name}_packed", codes, f"has {width} words a row and {groups} groups, which "
                   f"fits none of the {kinds} bits that config.json states")  # fmt: skip
        return
    bits, columns, group = found
    if zero is not None:
        packed = (-(-rows * bits // 32), groups)
        if not pool.fits(
            f"{name}_zero_point", zero, packed if zero.dtype == "I32" else scale.shape
        ):
            return
    if group_of is not None and not pool.fits(f"{name}_g_idx", group_of, (columns,)):
        return
    if stated is not None and not pool.fits(f"{name}_shape", stated, (2,)):
        return
    view = Packed(codes, scale, (rows, columns), bits, pool.saved_dtype, group, zero, group_of,
                  stated)  # fmt: skip
    pool.put(name, view, f"compressed-tensors INT{bits}")


def _stated_groups(pool: Pool) -> Iterator[tuple[int, int | None]]:
    """(bits, group size) of every group in compressed-tensors' settings."""
    groups = pool.settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights: Any = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and type(weights.get("num_bits")) is int:
            size = weights.get("group_size")
            yield weights["num_bits"], size if type(size) is int and size > 0 else None


def _bits(pool: Pool, width: int, groups: int) -> tuple[int, int, int] | None:
    """(bits, columns, columns in a group) that fit the words in a row and the groups."""
    for bits, size in _stated_groups(pool):
        if bits not in PACKED_BITS:
            continue
        most = width * 32 // bits  # columns, unless the last word is not full
        if size is None or groups == 1:
            if groups == 1:
                return bits, most, most
        elif -(-(groups * size) * bits // 32) == width:
            return bits, groups * size, size
    return None


def take_gptq(pool: Pool) -> None:
    """GPTQ: words down the input axis of a transposed matrix, zeros along the outputs."""
    offset = 0 if pool.settings.get("checkpoint_format") == "gptq_v2" else 1
    for stem in pool.ending(".qweight"):
        if pool.settings.get("quant_method") == "awq":
            _take_awq(pool, stem)
        else:
            _take_gptq(pool, stem, offset)


def _take_gptq(pool: Pool, stem: str, offset: int) -> None:
    parts = [pool.take(f"{stem}.{name}") for name in ("qweight", "scales", "qzeros", "g_idx")]
    words, scale, zero, group_of = parts
    if words is None or words.dtype != "I32" or len(words.shape) != 2 or 0 in words.shape:
        pool.wrong(f"{stem}.qweight", words, "is not a matrix of I32 words")
        return
    height, rows = words.shape
    stated = pool.settings.get("bits")
    bits = stated if type(stated) is int else 0
    if group_of is not None and group_of.shape and group_of.shape[0]:
        bits = height * 32 // group_of.shape[0]
    columns = height * 32 // bits if bits else 0
    if bits not in GPTQ_BITS or columns * bits != height * 32 or rows * bits % 32:
        pool.wrong(f"{stem}.qweight", words, f"of shape {list(words.shape)} is not of "
                   f"{', '.join(map(str, GPTQ_BITS))} bits")  # fmt: skip
        return
    if group_of is not None and not pool.fits(f"{stem}.g_idx", group_of, (columns,)):
        return
    if scale is None or len(scale.shape) != 2 or not scale.shape[0] or scale.shape[1] != rows:
        pool.fits(f"{stem}.scales", scale, (1, rows))
        return
    groups = scale.shape[0]
    if not pool.fits(f"{stem}.qzeros", zero, (groups, rows * bits // 32)) or zero is None:
        return
    group = _group_size(pool, columns, groups)
    if group is None:
        pool.wrong(f"{stem}.scales", scale, f"has {groups} groups for {columns} columns, which is "
                   "not the group_size of config.json")  # fmt: skip
        return
    view = Packed(
        permuted(words, (1, 0)), permuted(scale, (1, 0)), (rows, columns), bits, pool.saved_dtype,
        group, permuted(zero, (1, 0)), group_of, zero_offset=offset,
    )  # fmt: skip
    pool.put(f"{stem}.weight", view, f"GPTQ {bits}-bit")


def _group_size(pool: Pool, columns: int, groups: int) -> int | None:
    """Columns in a group: the stated number if it fits, else an even share."""
    stated = pool.settings.get("group_size", pool.settings.get("q_group_size"))
    if type(stated) is int and stated > 0 and -(-columns // stated) == groups:
        return stated
    return columns // groups if columns % groups == 0 else None


def _take_awq(pool: Pool, stem: str) -> None:
    """AWQ (gemm): words along the outputs of a transposed matrix, columns interleaved."""
    words, scale, zero = (pool.take(f"{stem}.{n}") for n in ("qweight", "scales", "qzeros"))
    if words is None or words.dtype != "I32" or len(words.shape) != 2 or 0 in words.shape:
        pool.wrong(f"{stem}.qweight", words, "is not a matrix of I32 words")
        return
    columns, width = words.shape
    rows = width * 8
    if scale is None or len(scale.shape) != 2 or not scale.shape[0] or scale.shape[1] != rows:
        pool.fits(f"{stem}.scales", scale, (1, rows))
        return
    groups = scale.shape[0]
    if not pool.fits(f"{stem}.qzeros", zero, (groups, width)) or zero is None:
        return
    group = _group_size(pool, columns, groups)
    if group is None:
        pool.wrong(f"{stem}.scales", scale, f"has {groups} groups for {columns} columns")
        return
    view = Packed(
        permuted(words, (1, 0)), permuted(scale, (1, 0)), (rows, columns), 4, pool.saved_dtype,
        group, permuted(zero, (1, 0)), down=True, order=AWQ_ORDER,
    )  # fmt: skip
    pool.put(f"{stem}.weight", view, "AWQ 4-bit")
