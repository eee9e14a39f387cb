// The model's face towards Python.
#include <map>
#include <optional>

#include "arguments.hpp"
#include "model.hpp"
#include "sites.hpp"

using namespace pairformer;

namespace {

Weights weights_of(const py::dict& arrays) {
  std::map<std::string, Weights::Array> found;
  for (const auto& [key, value] : arrays) {
    const auto name = key.cast<std::string>();
    if (!py::isinstance<py::array>(value)) {
      throw py::type_error(name + " must be a NumPy array, got " + Py_TYPE(value.ptr())->tp_name);
    }
    const auto array = py::reinterpret_borrow<py::array>(value);
    const float* data = checked<float>(array, name, static_cast<int>(array.ndim()), "any");
    found[name] = {data, {array.shape(), array.shape() + array.ndim()}};
  }
  return Weights(std::move(found));
}

ModelShape shape_of(const py::object& config) {
  const auto integer = [&](const char* part, const char* name) {
    return config.attr(part).attr(name).cast<int64_t>();
  };
  const auto cheap = config.attr("cheap").attr("channels").cast<std::vector<int64_t>>();
  return {config.attr("expensive").attr("channels").cast<std::vector<int64_t>>(),
          integer("expensive", "stem_kernel"),
          integer("expensive", "block_kernel"),
          integer("expensive", "se_reduction"),
          integer("expensive", "pooled_length"),
          cheap.at(0),
          cheap.at(1),
          integer("cheap", "width"),
          integer("cheap", "hidden"),
          config.attr("aggregator").attr("kind").cast<std::string>(),
          integer("aggregator", "width"),
          integer("aggregator", "layers"),
          integer("aggregator", "heads"),
          integer("aggregator", "hidden"),
          integer("aggregator", "pool_seeds"),
          integer("aggregator", "inducing_points"),
          integer("aggregator", "members"),
          integer("aggregator", "additive"),
          config.attr("aggregator").attr("length_gate").cast<bool>(),
          config.attr("token_width").cast<int64_t>(),
          config.attr("selector").attr("rng_seed").cast<uint32_t>()};
}

std::vector<TokenPart> token_of(const py::object& config) {
  static const std::map<std::string, TokenPart> known = {
      {"embedding", TokenPart::embedding}, {"logit", TokenPart::logit}, {"esa", TokenPart::esa},
      {"position", TokenPart::position},   {"site", TokenPart::site},   {"context", TokenPart::context},
      {"duplex", TokenPart::duplex}};
  std::vector<TokenPart> parts;
  for (const auto& name : config.attr("token").cast<std::vector<std::string>>())
    parts.push_back(known.at(name));
  return parts;
}

Model model_of(const py::object& config, const py::dict& arrays, const std::string& variant) {
  return {weights_of(arrays), shape_of(config), token_of(config), config.attr("empty_logit").cast<float>(),
          variant};
}

// The arrays of a pairformer.Candidates, checked and held.
struct HeldCandidates {
  py::array start, esa_score, position, alignment;
  std::vector<int64_t> offsets;
  py::object held_batch;
  const HeldBatch& batch;
  Candidates view;

  explicit HeldCandidates(const py::object& candidates)
      : start(candidates.attr("start")),
        esa_score(candidates.attr("esa_score")),
        position(candidates.attr("position")),
        alignment(candidates.attr("alignment")),
        offsets(checked_offsets(candidates.attr("offsets"), "offsets", start.size(), "start")),
        held_batch(candidates.attr("batch")),
        batch(held_batch.cast<const HeldBatch&>()),
        view{batch.view,
             offsets.data(),
             checked<int32_t>(start, "start", 1, "(N,)"),
             checked<uint8_t>(esa_score, "esa_score", 1, "(N,)"),
             checked<float>(position, "position", 1, "(N,)"),
             checked<uint32_t>(alignment, "alignment", 1, "(N,)")} {
    check_bags(offsets, "offsets", batch.view.bags);
    check_rows(esa_score, "esa_score", start.size(), "start");
    check_rows(position, "position", start.size(), "start");
    check_rows(alignment, "alignment", start.size(), "start");
  }

  std::vector<int64_t> rows(const py::array& numbers) const {
    auto found = copied<int64_t>(numbers, "rows", "(M,)");
    for (const int64_t row : found)
      if (row < 0 || row >= start.size())
        throw py::value_error("rows must be in [0, " + std::to_string(start.size()) + "), got " +
                              std::to_string(row));
    return found;
  }
};

py::tuple cheap_scan(const Model& model, const py::object& candidates, int64_t threads_asked) {
  const int threads = checked_threads(threads_asked);
  const HeldCandidates held(candidates);
  const int64_t n = held.start.size();
  py::array_t<float> logit(n);
  py::array_t<uint32_t> key(n);
  float* logit_data = logit.mutable_data();
  uint32_t* key_data = key.mutable_data();
  {
    const Unlocked unlocked;
    model.cheap_scan(held.view, threads, logit_data, key_data);
  }
  return py::make_tuple(logit, key);
}

py::tuple encode(const Model& model, const py::object& candidates, const py::array& rows,
                 int64_t threads_asked) {
  const int threads = checked_threads(threads_asked);
  const HeldCandidates held(candidates);
  const auto chosen = held.rows(rows);
  const int64_t n = rows.size();
  py::array_t<float> embedding({n, model.expensive_width()}), logit(n);
  float* embedding_data = embedding.mutable_data();
  float* logit_data = logit.mutable_data();
  {
    const Unlocked unlocked;
    model.encode(held.view, chosen.data(), n, threads, embedding_data, logit_data);
  }
  return py::make_tuple(embedding, logit);
}

py::tuple aggregate(const Model& model, const py::object& candidates, const py::array& rows,
                    const py::array& row_offsets, bool explain, int64_t threads_asked) {
  const int threads = checked_threads(threads_asked);
  const HeldCandidates held(candidates);
  const int64_t bags = held.view.batch.bags, n = rows.size();
  const auto numbers = held.rows(rows), ends = checked_offsets(row_offsets, "row_offsets", n, "rows");
  const ChosenRows chosen{numbers.data(), ends.data()};
  check_bags(ends, "row_offsets", bags);
  for (int64_t bag = 0; bag < bags; ++bag)
    for (int64_t i = chosen.offsets[bag]; i < chosen.offsets[bag + 1]; ++i)
      if (chosen.rows[i] < held.view.offsets[bag] || chosen.rows[i] >= held.view.offsets[bag + 1])
        throw py::value_error("rows of bag " + std::to_string(bag) + " must be its own, got " +
                              std::to_string(chosen.rows[i]));
  py::array_t<float> site_logit(n), pair_logit(bags);
  std::optional<py::array_t<float>> weight, repression, contribution;
  if (explain) weight.emplace(n);
  if (model.additive()) {
    repression.emplace(bags);
    contribution.emplace(n);
  }
  const auto data = [](auto& array) { return array ? array->mutable_data() : nullptr; };
  const Aggregated out{site_logit.mutable_data(), pair_logit.mutable_data(), data(weight), data(repression),
                       data(contribution)};
  {
    const Unlocked unlocked;
    model.aggregate(held.view, chosen, threads, out);
  }
  return py::make_tuple(site_logit, pair_logit, weight, repression, contribution);
}

py::tuple sum_sites(const Model& model, const py::object& candidates, int64_t k_max, int64_t threads_asked) {
  const int threads = checked_threads(threads_asked);
  if (!model.additive()) throw py::value_error("model must have additive heads, got none");
  const HeldCandidates held(candidates);
  const int64_t bags = held.view.batch.bags;
  py::array_t<uint8_t> known(bags);
  py::array_t<float> pair_logit(bags), repression(bags);
  py::array_t<double> contribution(bags);
  const Summed out{known.mutable_data(), pair_logit.mutable_data(), repression.mutable_data(),
                   contribution.mutable_data()};
  {
    const Unlocked unlocked;
    model.sum_sites(held.view, k_max, threads, out);
  }
  return py::make_tuple(known, pair_logit, repression, contribution);
}

py::array_t<uint8_t> seed_windows(const py::object& candidates, const py::array& cheap_logit, int least,
                                  int64_t threads_asked) {
  const int threads = checked_threads(threads_asked);
  if (least < kNoSeed || least > k8mer)
    throw py::value_error("least must be in 0..5, got " + std::to_string(least));
  const HeldCandidates held(candidates);
  const float* logit = checked<float>(cheap_logit, "cheap_logit", 1, "(N,)");
  check_rows(cheap_logit, "cheap_logit", held.start.size(), "start");
  const Candidates& view = held.view;
  py::array_t<uint8_t> mark(cheap_logit.size());
  uint8_t* const data = mark.mutable_data();
  {
    const Unlocked unlocked;
    mark_seed_windows(view.batch, view.offsets, view.start, logit, static_cast<SeedKind>(least), threads,
                      data);
  }
  return mark;
}

}  // namespace

void bind_model(py::module_& m) {
  m.def("seed_windows", &seed_windows,
        "Kind (N,) of match at the best window of each site with such a seed match or longer, else 0.",
        "candidates"_a, "cheap_logit"_a, "least"_a, "threads"_a = 0);
  py::class_<Model>(m, "Model", "The models of a ModelConfig on the CPU, from float32 arrays by name.")
      .def(py::init(&model_of), "config"_a, "arrays"_a, "variant"_a = "auto")
      .def_property_readonly("variant", &Model::variant)
      .def("cheap_scan", &cheap_scan, "Cheap logit (N,), selector key (N,).", "candidates"_a, "threads"_a = 0)
      .def("encode", &encode, "Expensive embedding (M, E) and logit (M,) of rows.", "candidates"_a, "rows"_a,
           "threads"_a = 0)
      .def("aggregate", &aggregate,
           "Site logit (M,), pair logit (B,), weight (M,) or None, repression (B,) and contribution (M,) or "
           "None, of chosen rows.",
           "candidates"_a, "rows"_a, "row_offsets"_a, "explain"_a = false, "threads"_a = 0)
      .def("sum_sites", &sum_sites,
           "Whether a bag is known (B,) without an encoder; if so pair logit (B,), repression (B,) and the "
           "contributions (B,) of all its sites.",
           "candidates"_a, "k_max"_a, "threads"_a = 0);
}
