def linear(
    x: int,
    number: int,
    rows: int,
    k: int,
    kind: int,
    data: int,
    scales: int,
    scale_number: int,
    zeros: int,
    n: int,
    tiles: int,
    packed_k: int,
    run_offsets: int,
    segment_offsets: int,
    segments: int,
    gather: int,
    quantize: bool,
    input_scale: float,
    out: int,
    /,
) -> None: ...
def rms_norm(
    x: int,
    weight: int,
    weight_number: int,
    eps: float,
    rows: int,
    width: int,
    out: int,
    out_number: int,
    /,
) -> None: ...
def silu_mul(gate: int, up: int, rows: int, width: int, out: int, out_number: int, /) -> None: ...
def rope_and_cache(
    q: int,
    k: int,
    v: int,
    cos: int,
    sin: int,
    positions: int,
    slots: int,
    q_norm: int,
    k_norm: int,
    norm_number: int,
    eps: float,
    rows: int,
    q_heads: int,
    kv_heads: int,
    head: int,
    keys: int,
    values: int,
    out: int,
    number: int,
    /,
) -> None: ...
def attention(
    q: int,
    keys: int,
    values: int,
    number: int,
    block_tables: int,
    max_pages: int,
    row_sequence: int,
    positions: int,
    head_to_kv: int,
    scale: float,
    window: int,
    rows: int,
    q_heads: int,
    kv_heads: int,
    head: int,
    out: int,
    /,
) -> None: ...
def first_outside32(values: int, count: int, limit: int, /) -> int: ...
def first_outside64(values: int, count: int, limit: int, /) -> int: ...
def first_without_page(
    block_tables: int,
    max_pages: int,
    row_sequence: int,
    positions: int,
    rows: int,
    window: int,
    pages: int,
    /,
) -> int: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str, /) -> bool: ...
def uses_vnni() -> bool: ...
def set_threads(count: int, /) -> None: ...
def threads() -> int: ...
def busy_ns() -> int: ...
