// Recording a Program from Python: each method captures one op with everything but the rows.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "machine/chunks.h"
#include "linear/lookup.h"

namespace nb = nanobind;

namespace isobit {
namespace {

using Id = Program::Id;

Number number_of(int number) { return static_cast<Number>(number); }

int64_t linears(Program& p, Id x, int number, std::vector<Weight> weights, Address merges,
                std::vector<Address> biases, std::vector<Id> outs, std::vector<int64_t> widths) {
  return p.record([=, &p](const Step&, int64_t rows) {
    LinearCall calls[kMostTogether];
    for (size_t i = 0; i < weights.size(); ++i) {
      calls[i] = {&weights[i], p.at(x), number_of(number), at<const int32_t>(merges),
                  at<const float>(biases[i]), static_cast<float*>(p.at(outs[i])), widths[i]};
    }
    run_linears(calls, static_cast<int>(weights.size()), rows);
  });
}

int64_t rms_norm(Program& p, Id x, Id add, Address bias, Address weight, int weight_number,
                 float eps, int64_t width, Id out, int out_number) {
  return p.record([=, &p](const Step&, int64_t rows) {
    kernels().rms_norm({static_cast<float*>(p.at(x)),
                        add < 0 ? nullptr : static_cast<float*>(p.at(add)), at<const float>(bias),
                        at(weight), number_of(weight_number), eps, rows, width,
                        out < 0 ? nullptr : p.at(out), number_of(out_number)});
  });
}

int64_t silu_mul(Program& p, Id gate, Id up, int64_t width, Id out, int number) {
  return p.record([=, &p](const Step&, int64_t rows) {
    kernels().silu_mul({static_cast<float*>(p.at(gate)), static_cast<float*>(p.at(up)), rows, width,
                        p.at(out), number_of(number)});
  });
}

int64_t rope_and_cache(Program& p, Id q, Id k, Id v, Address cos, Address sin, Address q_norm,
                       Address k_norm, int norm_number, float eps, int64_t q_heads,
                       int64_t kv_heads, int64_t head, Address keys, Address values, Id out,
                       int number) {
  return p.record([=, &p](const Step& step, int64_t rows) {
    kernels().rope({static_cast<float*>(p.at(q)), static_cast<float*>(p.at(k)),
                    static_cast<float*>(p.at(v)), at<const float>(cos), at<const float>(sin),
                    step.positions, step.slots, at(q_norm), at(k_norm), number_of(norm_number), eps,
                    rows, q_heads, kv_heads, head, at(keys), at(values), p.at(out),
                    number_of(number)});
  });
}

int64_t attention(Program& p, Id q, Address keys, Address values, int number, Address head_to_kv,
                  float scale, int64_t window, int64_t q_heads, int64_t kv_heads, int64_t head,
                  Id out) {
  const int64_t shared = (q_heads + kv_heads - 1) / kv_heads;
  return p.record([=, &p](const Step& step, int64_t rows) {
    const auto chunks = chunks_of(step.sequence, rows, shared);
    kernels().attention({p.at(q), at(keys), at(values), number_of(number), step.block_tables,
                         step.max_pages, step.sequence, step.positions,
                         at<const int32_t>(head_to_kv), scale, window, rows, q_heads, kv_heads,
                         head, chunks.data(), static_cast<int64_t>(chunks.size()) - 1, p.at(out)});
  });
}

int64_t record_embed(Program& p, Address table, int number, bool tiled, Address gather,
              int64_t packed_width, int64_t first, int64_t count, int64_t width, Id out) {
  return p.record([=, &p](const Step& step, int64_t rows) {
    embed({at(table), number_of(number), tiled, at<const int32_t>(gather), packed_width,
                   first, count, width, step.tokens, p.at(out)}, rows);
  });
}

int64_t record_owned_rows(Program& p, Id gathered, int number, std::vector<int64_t> ends, int64_t width,
                   Id out) {
  return p.record([=, &p](const Step& step, int64_t rows) {
    owned_rows({p.at(gathered), number_of(number), ends.data(),
                        static_cast<int64_t>(ends.size()), width, step.tokens,
                        static_cast<float*>(p.at(out))}, rows);
  });
}

int64_t record_join_columns(Program& p, Id gathered, std::vector<int64_t> sizes, int64_t most,
                     int64_t width, Id out) {
  return p.record([=, &p](const Step&, int64_t rows) {
    join_columns({static_cast<float*>(p.at(gathered)), sizes.data(),
                          static_cast<int64_t>(sizes.size()), most, width,
                          static_cast<float*>(p.at(out))}, rows);
  });
}

int64_t sampled_rows(Program& p, Id x, int64_t row_bytes, Id out) {
  return p.record([=, &p](const Step& step, int64_t rows) {
    select_rows({p.at(x), row_bytes, step.sampled, p.at(out)}, rows);
  });
}

int64_t last_row(Program& p, Id x, int64_t row_bytes, Address out) {
  return p.record([=, &p](const Step&, int64_t rows) {
    const int64_t last = rows - 1;
    select_rows({p.at(x), row_bytes, &last, at(out)}, 1);
  });
}

int64_t external(Program& p, Address call, Address context, Id in, Id out) {
  return p.record_external(reinterpret_cast<External>(call), at(context), in, out);
}

}  // namespace

void bind_program(nb::module_& m) {
  nb::class_<Program>(m, "Program")
      .def(nb::init<>())
      .def("buffer", &Program::buffer)
      .def("place", [](Program& p, Id id, Address memory) { p.place(id, at(memory)); })
      .def("use_sampled_rows", &Program::use_sampled_rows)
      .def("linears", linears)
      .def("rms_norm", rms_norm)
      .def("silu_mul", silu_mul)
      .def("rope_and_cache", rope_and_cache)
      .def("attention", attention)
      .def("embed", record_embed)
      .def("owned_rows", record_owned_rows)
      .def("join_columns", record_join_columns)
      .def("sampled_rows", sampled_rows)
      .def("last_row", last_row)
      .def("external", external)
      .def("set_step", [](Program& p, const StepMemory& memory) { p.step = step_at(memory); })
      .def("run", &Program::run, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace isobit
