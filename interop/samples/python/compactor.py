"""compactor.h for Python: ctypes declarations of what the samples use, with the names and the order of the header, which documents them."""

import ctypes as c
import os

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
BACKEND_AUTO, BACKEND_CUDA, BACKEND_CPU = 0, 1, 2
PRESET_PAPER, PRESET_KVPRESS, PRESET_COMPACTOR_VLLM = 0, 1, 2
BUDGET_RETENTION, BUDGET_TOKENS, BUDGET_BYTES = 0, 1, 2
SELECT_SEQUENCE, SELECT_HEAD, SELECT_TOKEN = 0, 1, 2
ABI_VERSION = 1

_i32, _i64, _u64, _f64, _ptr = c.c_int32, c.c_int64, c.c_uint64, c.c_double, c.c_void_p


class _Struct(c.Structure):
    """A struct that begins with its size."""

    def __init__(self, **fields):
        super().__init__(struct_size=c.sizeof(type(self)), **fields)


def _struct(name, *fields):
    return type(name, (_Struct,), {"_fields_": [("struct_size", c.c_uint32), *fields]})


BackendOptions = _struct("BackendOptions", ("kind", _i32), ("device", _i32), ("threads", _i32), ("simd_bits", _i32), ("reserved", _i32), ("context", _ptr), ("stream", _ptr))
BackendInfo = _struct("BackendInfo", ("kind", _i32), ("threads", _i32), ("simd_bits", _i32), ("description", c.c_char * 112), ("compiler", c.c_char * 48))
Options = _struct(
    "Options", ("sketch_dimension", _i32), ("sketch_sharing", _i32), ("center_keys", _i32), ("leverage_chunk", _i32), ("leverage_scope", _i32), ("epsilon", _f64),
    ("attention_chunk", _i32), ("group_reduction", _i32), ("attention_scale", _f64), ("weight_by_value_norm", _i32), ("pool_width", _i32), ("attention_scope", _i32),
    ("unbiased_standard_deviation", _i32), ("standard_deviation_floor", _f64), ("leverage_weight", _f64), ("leverage_weight_rule", _i32), ("protect_first", _i32),
    ("protect_last", _i32), ("score_protected", _i32), ("protected_budget", _i32), ("selection_scope", _i32), ("retention_count", _i32), ("min_tokens_per_head", _i32),
    ("seed", _u64))
Budget = _struct("Budget", ("unit", _i32), ("amount", _f64))
Shape = _struct(
    "Shape", ("sequences", _i32), ("cu_seqlens", _ptr), ("sequence_ids", _ptr), ("query_heads", _i32), ("kv_heads", _i32), ("head_dim", _i32), ("element_type", _i32),
    ("layer", _i32), ("first_head", _i32))
PlanInfo = _struct("PlanInfo", ("sequences", _i32), ("kv_heads", _i32), ("keeps_everything", _i32), ("tokens", _i64), ("pairs", _i64), ("kept_pairs", _i64), ("workspace_bytes", _u64))
Tensor = _struct(
    "Tensor", ("element_type", _i32), ("data", _ptr), ("data_bytes", _u64), ("tokens", _i32), ("heads", _i32), ("dim", _i32), ("reserved", _i32), ("token_stride", _i64),
    ("head_stride", _i64), ("sequence_stride", _i64))
Rotary = _struct(
    "Rotary", ("style", _i32), ("rotary_dim", _i32), ("reserved", _i32), ("theta", _f64), ("inverse_frequencies", _ptr), ("positions", _ptr), ("position_count", _i64),
    ("cos", _ptr), ("sin", _ptr), ("table_rows", _i64))
Layer = _struct(
    "Layer", ("policy", _i32), ("key", c.POINTER(Tensor)), ("value", c.POINTER(Tensor)), ("key_pre_rope", c.POINTER(Tensor)), ("query", c.POINTER(Tensor)),
    ("rotary", c.POINTER(Rotary)), ("phi", _ptr), ("phi_count", _i64), ("policy_seed", _u64))

LogCallback = c.CFUNCTYPE(None, _ptr, _i32, c.c_char_p)


class CompactorError(Exception):
    """A call that failed, in the library's own words."""


class Library:
    """The shared library; every function that returns a status raises CompactorError instead of failing silently."""

    def __init__(self, path=None):
        self._library = c.CDLL(path or os.environ.get("COMPACTOR_LIBRARY", "libcompactor_native.so"))
        self._library.compactor_last_error.restype = c.c_char_p
        self._library.compactor_status_name.restype = c.c_char_p
        found = self._library.compactor_abi_version()
        if found != ABI_VERSION:
            raise CompactorError(f"the library has ABI version {found}; these declarations are of {ABI_VERSION}")

    def __getattr__(self, name):
        function = getattr(self._library, "compactor_" + name)

        def call(*arguments):
            status = function(*arguments)
            if status != 0:
                raise CompactorError(f"{name}: {self._library.compactor_status_name(status).decode()}: {self._library.compactor_last_error().decode()}")

        return call


def handle(make, *arguments):
    """Calls what makes a handle and returns it."""
    made = _u64()
    make(*arguments, c.byref(made))
    return made
