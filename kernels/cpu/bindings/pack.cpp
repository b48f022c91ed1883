// The Python face of packing; pack.py has checked what the addresses point at.
#include "bindings/bindings.h"
#include "linear/pack.h"

namespace nb = nanobind;

namespace isobit {
namespace {

void pack_tiles(Address words, int64_t stride_n, int64_t stride_k, int bits, bool along_k,
                bool split, Address shifts, Address rows, Address columns, int64_t tiles, int64_t lines,
                Address run_of, Address zeros, int64_t zeros_stride, uint32_t fill, Address out,
                int64_t out_stride) {
  pack({at<const uint32_t>(words), stride_n, stride_k, bits, along_k, split,
        at<const int32_t>(shifts),
        at<const int32_t>(rows), at<const int32_t>(columns), tiles, lines,
        at<const int32_t>(run_of), at<const uint8_t>(zeros), zeros_stride, fill,
        at<uint32_t>(out), out_stride});
}

}  // namespace

void bind_pack(nb::module_& m) {
  const auto free = nb::call_guard<nb::gil_scoped_release>();
  m.def("pack_tiles", pack_tiles, free);
  m.def("all_finite", [](Address values, int number, int64_t count) {
    return all_finite(at(values), static_cast<Number>(number), count);
  }, free);
}

}  // namespace isobit
