// The Python face. Tensors arrive as integers; shared.py has checked what they point at.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <tuple>

#include "communicator.h"

namespace nb = nanobind;

namespace isobit {
namespace {

using Address = uintptr_t;

template <class T>
Address address_of(T* pointer) {
  return reinterpret_cast<Address>(pointer);
}

void* at(Address address) { return reinterpret_cast<void*>(address); }

}  // namespace
}  // namespace isobit

NB_MODULE(_shared, m) {
  using namespace isobit;
  const auto free = nb::call_guard<nb::gil_scoped_release>();

  nb::class_<Sizes>(m, "Sizes")
      .def("__init__",
           [](Sizes* self, uint64_t degree, uint64_t slot_bytes, uint64_t two_shot_bytes) {
             new (self) Sizes{degree, slot_bytes, two_shot_bytes};
           });
  m.def("bytes_needed", bytes_needed);
  m.def("create_memory", [](const std::string& name, const Sizes& sizes) {
    const Created created = create_memory(name, sizes);
    return std::make_tuple(created.error, created.free_bytes);
  });
  m.def("unlink_memory", unlink_memory);
  m.def("place_token", place_token);
  m.def("sees_token", sees_token);

  nb::class_<Communicator>(m, "Communicator")
      .def(nb::init<const std::string&, const Sizes&, int64_t, int64_t, const std::vector<Node>&,
                    const std::vector<std::vector<Node>>&, double>())
      .def("watch_peers", &Communicator::watch_peers)
      .def("add_site",
           [](Communicator& self, const std::string& name, int64_t width) {
             return address_of(self.add_site(name, width));
           })
      .def("fault",
           [](Communicator& self) {
             const Fault fault = self.fault();
             return std::make_tuple(static_cast<int>(fault.cause), fault.rank, fault.text);
           })
      .def("abandon", &Communicator::abandon)
      .def("leave", &Communicator::leave);

  m.def("all_reduce",
        [](Address site, Address nodes, Address out, int64_t rows) {
          return isobit_all_reduce(at(site), at(nodes), at(out), rows);
        },
        free);
  m.def("all_gather",
        [](Address site, Address in, Address out, int64_t rows) {
          return isobit_all_gather(at(site), at(in), at(out), rows);
        },
        free);
  m.def("broadcast",
        [](Address site, Address data, int64_t rows, int64_t source) {
          const auto& found = *static_cast<const Site*>(at(site));
          return !found.communicator->broadcast(found, static_cast<char*>(at(data)), rows, source);
        },
        free);
  m.def("all_reduce_address", [] { return address_of(&isobit_all_reduce); });
  m.def("all_gather_address", [] { return address_of(&isobit_all_gather); });
}
