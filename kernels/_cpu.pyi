class Weight: ...

def weight(
    kind: int,
    data: int,
    scales: int,
    scale_number: int,
    zeros: int,
    runs: int,
    n: int,
    k: int,
    packed_k: int,
    run_offsets: int,
    segment_offsets: int,
    segments: int,
    gather: int,
    quantize: bool,
    input_scale: float,
    /,
) -> Weight: ...
def linear(weight: Weight, x: int, number: int, rows: int, merges: int, out: int, /) -> None: ...
def rms_norm(
    x: int,
    add: int,
    bias: int,
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

read_unit: int
tile: int

def read_memory(start: int, bytes: int, /) -> int: ...
def peak(rounds: int, tasks: int, /) -> int: ...
def greatest(x: int, rows: int, width: int, /) -> list[int]: ...
def step_outside(
    tokens: int,
    positions: int,
    slots: int,
    sequence: int,
    sampled: int,
    rows: int,
    sampled_rows: int,
    vocabulary: int,
    last: int,
    last_slot: int,
    sequences: int,
    /,
) -> tuple[int, int]: ...
def busy_ns() -> int: ...
def external_ns() -> int: ...
def pack_tiles(
    words: int,
    stride_n: int,
    stride_k: int,
    bits: int,
    along_k: bool,
    split: bool,
    shifts: int,
    rows: int,
    columns: int,
    tiles: int,
    lines: int,
    run_of: int,
    zeros: int,
    zeros_stride: int,
    fill: int,
    out: int,
    out_stride: int,
    /,
) -> None: ...
def all_finite(values: int, number: int, count: int, /) -> bool: ...
def digest(data: int, bytes: int, seed: int, /) -> int: ...

class Program:
    def buffer(self) -> int: ...
    def place(self, buffer: int, memory: int, /) -> None: ...
    def use_sampled_rows(self) -> None: ...
    def linears(
        self,
        x: int,
        number: int,
        weights: list[Weight],
        merges: int,
        biases: list[int],
        outs: list[int],
        widths: list[int],
        /,
    ) -> int: ...
    def rms_norm(
        self,
        x: int,
        add: int,
        bias: int,
        weight: int,
        weight_number: int,
        eps: float,
        width: int,
        out: int,
        out_number: int,
        /,
    ) -> int: ...
    def silu_mul(self, gate: int, up: int, width: int, out: int, number: int, /) -> int: ...
    def rope_and_cache(
        self,
        q: int,
        k: int,
        v: int,
        cos: int,
        sin: int,
        q_norm: int,
        k_norm: int,
        norm_number: int,
        eps: float,
        q_heads: int,
        kv_heads: int,
        head: int,
        keys: int,
        values: int,
        out: int,
        number: int,
        /,
    ) -> int: ...
    def attention(
        self,
        q: int,
        keys: int,
        values: int,
        number: int,
        head_to_kv: int,
        scale: float,
        window: int,
        q_heads: int,
        kv_heads: int,
        head: int,
        out: int,
        /,
    ) -> int: ...
    def embed(
        self,
        table: int,
        number: int,
        tiled: bool,
        gather: int,
        packed_width: int,
        first: int,
        count: int,
        width: int,
        out: int,
        /,
    ) -> int: ...
    def owned_rows(
        self, gathered: int, number: int, ends: list[int], width: int, out: int, /
    ) -> int: ...
    def join_columns(
        self, gathered: int, sizes: list[int], most: int, width: int, out: int, /
    ) -> int: ...
    def sampled_rows(self, x: int, row_bytes: int, out: int, /) -> int: ...
    def last_row(self, x: int, row_bytes: int, out: int, /) -> int: ...
    def external(self, call: int, context: int, in_: int, out: int, /) -> int: ...
    def set_step(
        self,
        rows: int,
        tokens: int,
        positions: int,
        slots: int,
        sequence: int,
        block_tables: int,
        max_pages: int,
        sampled_rows: int,
        sampled: int,
        /,
    ) -> None: ...
    def run(self, begin: int, end: int, /) -> int: ...
