// The Python face of the extension: checks arrays, releases the GIL, calls plain C++.
#include <optional>
#include <vector>

#include "arguments.hpp"
#include "duplex.hpp"
#include "encode.hpp"
#include "energies.hpp"
#include "ensemble.hpp"
#include "selector.hpp"
#include "simhash.hpp"
#include "sites.hpp"
#include "variants.hpp"

using namespace pairformer;

namespace {

py::tuple scan(const HeldBatch& held, int64_t esa_min, int64_t threads_asked, const std::string& variant) {
  const int threads = checked_threads(threads_asked);
  if (esa_min < 0 || esa_min > kSeedPart)
    throw py::value_error("esa_min must be in 0..10, got " + std::to_string(esa_min));
  const PairBatch& batch = held.view;
  Scanner scanner(batch, static_cast<int>(esa_min), variant);
  py::array_t<int64_t> offsets(batch.bags + 1), n_dropped(batch.bags);
  int64_t* const offsets_data = offsets.mutable_data();
  int64_t* const dropped_data = n_dropped.mutable_data();
  {
    const Unlocked unlocked;
    scanner.count(threads, offsets_data, dropped_data);
  }
  const int64_t rows = offsets_data[batch.bags];
  py::array_t<int32_t> start(rows);
  py::array_t<uint8_t> esa_score(rows);
  py::array_t<float> position(rows);
  py::array_t<uint32_t> alignment(rows);
  const CandidateRows out{start.mutable_data(), esa_score.mutable_data(), position.mutable_data(),
                          alignment.mutable_data()};
  {
    const Unlocked unlocked;
    scanner.fill(threads, out);
  }
  return py::make_tuple(offsets, start, esa_score, position, alignment, n_dropped);
}

// Candidate rows to write out, checked against the batch they point into.
std::vector<EncodeRow> checked_rows(const PairBatch& batch, const py::array& bag, const py::array& start,
                                    const py::array& alignment) {
  const int64_t* bags = checked<int64_t>(bag, "bag", 1, "(M,)");
  const int32_t* starts = checked<int32_t>(start, "start", 1, "(M,)");
  const uint32_t* alignments = checked<uint32_t>(alignment, "alignment", 1, "(M,)");
  if (start.size() != bag.size() || alignment.size() != bag.size())
    throw py::value_error("bag, start and alignment must have one entry per row, got " +
                          std::to_string(bag.size()) + ", " + std::to_string(start.size()) + " and " +
                          std::to_string(alignment.size()));
  std::vector<EncodeRow> rows(static_cast<size_t>(bag.size()));
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = {bags[i], starts[i], alignments[i]};
    check_row(batch, rows[i]);
  }
  return rows;
}

py::array_t<uint8_t> encode(const HeldBatch& held, const py::array& bag, const py::array& start,
                            const py::array& alignment, int64_t threads_asked) {
  const int threads = checked_threads(threads_asked);
  const PairBatch& batch = held.view;
  const auto rows = checked_rows(batch, bag, start, alignment);
  const auto count = static_cast<int64_t>(rows.size());
  py::array_t<uint8_t> one_hot(
      {static_cast<py::ssize_t>(count), py::ssize_t{kChannels}, py::ssize_t{kColumns}});
  uint8_t* const data = one_hot.mutable_data();
  constexpr int64_t kRowsPerTask = 4096;
  const Unlocked unlocked;
  parallel_rows(count, kRowsPerTask, threads, [&](int64_t first, int64_t end) {
    RowSymbols symbols(batch);
    uint8_t symbol[kColumns];
    for (int64_t i = first; i < end; ++i) {
      symbols(rows[i], symbol);
      one_hot_columns(symbol, data + i * kChannels * kColumns);
    }
  });
  return one_hot;
}

py::array aligned(const HeldBatch& held, const py::array& bag, const py::array& start,
                  const py::array& alignment) {
  const auto rows = checked_rows(held.view, bag, start, alignment);
  py::array text(py::dtype("S20"), {static_cast<py::ssize_t>(rows.size()), py::ssize_t{2}});
  char* const data = static_cast<char*>(text.mutable_data());
  RowSymbols symbols(held.view);
  uint8_t symbol[kColumns];
  for (size_t i = 0; i < rows.size(); ++i) {
    const int length = symbols(rows[i], symbol);
    aligned_text(symbol, length, data + 2 * i * kMaxAligned, data + (2 * i + 1) * kMaxAligned);
  }
  return text;
}

// Bags and window starts, checked against the batch they point into.
struct Windows {
  std::vector<int64_t> bag;
  std::vector<int32_t> start;
  int64_t count;

  Windows(const PairBatch& batch, const py::array& bags, const py::array& starts) : count(bags.size()) {
    bag = copied<int64_t>(bags, "bag", "(M,)");
    start = copied<int32_t>(starts, "start", "(M,)");
    if (starts.size() != count)
      throw py::value_error("start must have one entry per bag, got " + std::to_string(starts.size()) +
                            " for " + std::to_string(count));
    for (int64_t i = 0; i < count; ++i) check_window(batch, bag[i], start[i]);
  }
};

py::tuple seed_matches(const HeldBatch& held, const py::array& bag, const py::array& start) {
  const Windows windows(held.view, bag, start);
  py::array_t<int8_t> kind(windows.count);
  py::array_t<int32_t> begin(windows.count), end(windows.count), anchor(windows.count);
  for (int64_t i = 0; i < windows.count; ++i) {
    const SeedMatch match = seed_match(SitePair(held.view, windows.bag[i]), windows.start[i]);
    kind.mutable_data()[i] = match.kind;
    begin.mutable_data()[i] = match.start;
    end.mutable_data()[i] = match.end;
    anchor.mutable_data()[i] = match.anchor;
  }
  return py::make_tuple(kind, begin, end, anchor);
}

constexpr int64_t kWindowsPerTask = 256;

py::array_t<float> features(const HeldBatch& held, const py::array& bag, const py::array& start,
                            int64_t threads_asked) {
  const int threads = checked_threads(threads_asked);
  const Windows windows(held.view, bag, start);
  py::array_t<float> feature({windows.count, int64_t{kSiteFeatures}});
  float* const data = feature.mutable_data();
  const Unlocked unlocked;
  parallel_rows(windows.count, kWindowsPerTask, threads, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i)
      site_features(SitePair(held.view, windows.bag[i]), windows.start[i], data + i * kSiteFeatures);
  });
  return feature;
}

py::array_t<float> energies(const HeldBatch& held, const py::array& bag, const py::array& start,
                            int64_t threads_asked) {
  const int threads = checked_threads(threads_asked);
  const Windows windows(held.view, bag, start);
  py::array_t<float> energy(windows.count);
  float* const data = energy.mutable_data();
  const Unlocked unlocked;
  parallel_rows(windows.count, kWindowsPerTask, threads, [&](int64_t first, int64_t end) {
    std::optional<Duplexes> duplexes;
    for (int64_t i = first; i < end; ++i) {
      if (i == first || windows.bag[i] != windows.bag[i - 1])
        duplexes.emplace(SitePair(held.view, windows.bag[i]));
      data[i] = static_cast<float>(duplexes->energy(windows.start[i])) / 10;
    }
  });
  return energy;
}

py::tuple duplex_costs() {
  py::array_t<int16_t> stack({4, 4, 4, 4}), end({4, 4});
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 4; ++b) {
      end.mutable_at(a, b) = static_cast<int16_t>(Duplexes::end(a, b));
      for (int c = 0; c < 4; ++c)
        for (int d = 0; d < 4; ++d)
          stack.mutable_at(a, b, c, d) = static_cast<int16_t>(Duplexes::stack(a, b, c, d));
    }
  return py::make_tuple(stack, end, int{Duplexes::kFar}, int{Duplexes::kOpenLoop},
                        int{Duplexes::kLoopLetter});
}

py::array_t<float> context(const HeldBatch& held, const py::array& offsets, const py::array& start) {
  const PairBatch& batch = held.view;
  const auto starts = copied<int32_t>(start, "start", "(M,)");
  const auto ends = checked_offsets(offsets, "offsets", start.size(), "start");
  check_bags(ends, "offsets", batch.bags);
  py::array_t<float> feature({static_cast<int64_t>(start.size()), int64_t{kContextFeatures}});
  float* data = feature.mutable_data();
  const Unlocked unlocked;
  for (int64_t bag = 0; bag < batch.bags; ++bag) {
    const int64_t first = ends[bag], end = ends[bag + 1];
    for (int64_t i = first; i < end; ++i) check_window(batch, bag, starts[i]);
    site_context(SitePair(batch, bag), starts.data() + first, end - first, data + first * kContextFeatures,
                 kContextFeatures);
  }
  return feature;
}

py::array_t<float> pair_features(const HeldBatch& held, const py::array& n_candidates) {
  const int64_t bags = held.view.bags;
  const int64_t* counts = checked<int64_t>(n_candidates, "n_candidates", 1, "(B,)");
  check_rows(n_candidates, "n_candidates", bags, "batch");
  py::array_t<float> feature({bags, int64_t{kBagFeatures}});
  float* data = feature.mutable_data();
  const Unlocked unlocked;
  for (int64_t bag = 0; bag < bags; ++bag) {
    if (counts[bag] < 0)
      throw py::value_error("n_candidates must be 0 or more, got " + std::to_string(counts[bag]));
    bag_features(SitePair(held.view, bag), counts[bag], data + bag * kBagFeatures);
  }
  return feature;
}

SelectorSettings selector_settings(const py::object& config) {
  const auto variant = config.attr("variant").cast<std::string>();
  const auto integer = [&](const char* name) { return config.attr(name).cast<int64_t>(); };
  const auto real = [&](const char* name) { return config.attr(name).cast<double>(); };
  const auto per_pool = [&](const char* name) { return config.attr(name).cast<std::array<int64_t, 3>>(); };
  return {integer("k_max"),
          real("rho"),
          variant != "S0",
          variant == "S2",
          config.attr("score").cast<std::string>() == "sigmoid",
          integer("pool_factor"),
          integer("pool_min"),
          integer("pool_max"),
          config.attr("pool_steps").cast<std::array<int64_t, 2>>(),
          per_pool("n_bins"),
          per_pool("bin_size"),
          per_pool("hash_bits"),
          integer("key_cap"),
          integer("top_t"),
          real("tau_w"),
          config.attr("z_normalize").cast<bool>(),
          real("z_eps"),
          real("exponent_clip"),
          config.attr("rng_seed").cast<uint32_t>()};
}

py::tuple select_rows(const py::array& cheap_logit, const std::optional<py::array>& cheap_embedding,
                      const std::optional<py::array>& position, const py::array& offsets,
                      const py::object& config, int64_t threads_asked, const std::optional<py::array>& keep) {
  const int threads = checked_threads(threads_asked);
  const auto settings = selector_settings(config);
  const float* logit = checked<float>(cheap_logit, "cheap_logit", 1, "(N,)");
  const int64_t n = cheap_logit.shape(0);
  const auto starts = checked_offsets(offsets, "offsets", n, "cheap_logit");
  const auto bags = static_cast<int64_t>(starts.size()) - 1;
  const Ragged<float> rows_in{logit, starts.data(), bags};

  HashSource hash{nullptr, nullptr, 0};
  if (cheap_embedding) {
    if (cheap_embedding->ndim() == 1) {
      hash.keys = checked<uint32_t>(*cheap_embedding, "cheap_embedding as keys (N,)", 1, "(N,)");
    } else {
      hash.embedding = checked<float>(*cheap_embedding, "cheap_embedding", 2, "(N, D), or (N,) as keys");
      hash.width = cheap_embedding->shape(1);
    }
    check_rows(*cheap_embedding, "cheap_embedding", n, "cheap_logit");
  } else if (settings.deduplicate) {
    throw py::value_error("cheap_embedding must be (N, D) embeddings or (N,) keys for variant S2, got None");
  }
  const float* p = nullptr;
  if (position) {
    p = checked<float>(*position, "position", 1, "(N,)");
    check_rows(*position, "position", n, "cheap_logit");
  } else if (settings.cover) {
    throw py::value_error("position must be an (N,) array for variants S1 and S2, got None");
  }

  const uint8_t* marked = nullptr;
  if (keep) {
    marked = checked<uint8_t>(*keep, "keep", 1, "(N,)");
    check_rows(*keep, "keep", n, "cheap_logit");
  }

  py::array_t<int64_t> out_offsets(bags + 1);
  int64_t* ends = out_offsets.mutable_data();
  ends[0] = 0;
  for (int64_t b = 0; b < bags; ++b) ends[b + 1] = ends[b] + std::min(settings.k_max, rows_in.size(b));
  py::array_t<int64_t> rows(ends[bags]);
  py::array_t<uint8_t> reason(ends[bags]);
  int64_t* rows_out = rows.mutable_data();
  uint8_t* reason_out = reason.mutable_data();
  {
    const Unlocked unlocked;
    select(rows_in, p, marked, hash, settings, ends, rows_out, reason_out, threads);
  }
  return py::make_tuple(rows, out_offsets, reason);
}

py::array_t<uint32_t> keys_of(const py::array& embedding, uint32_t rng_seed, int64_t threads_asked,
                              const std::optional<py::array>& offsets) {
  const int threads = checked_threads(threads_asked);
  const float* data = checked<float>(embedding, "embedding", 2, "(N, D)");
  const int64_t n = embedding.shape(0), width = embedding.shape(1);
  std::vector<int64_t> ends;
  if (offsets) ends = checked_offsets(*offsets, "offsets", n, "embedding");
  py::array_t<uint32_t> keys(n);
  uint32_t* out = keys.mutable_data();
  {
    const Unlocked unlocked;
    if (offsets)
      pairformer::centred_simhash_keys(data, width, ends.data(), static_cast<int64_t>(ends.size()) - 1,
                                       rng_seed, out, threads);
    else
      pairformer::simhash_keys(data, n, width, rng_seed, out, threads);
  }
  return keys;
}

py::array_t<int64_t> dims_of(uint32_t rng_seed, int64_t width) {
  if (width < 0) throw py::value_error("width must be at least 0, got " + std::to_string(width));
  const auto dims = pairformer::simhash_dims(rng_seed, width);
  return py::array_t<int64_t>(static_cast<int64_t>(dims.size()), dims.data());
}

py::array_t<float> pair_probabilities(const py::array& codes, const py::array& lengths, int64_t threads_asked,
                                      const std::string& variant) {
  const int threads = checked_threads(threads_asked);
  const Kernels& kernels = kernels_of(variant);
  const uint8_t* const first_code = checked<uint8_t>(codes, "codes", 2, "(B, L)");
  const auto length = copied<int64_t>(lengths, "lengths", "(B,)");
  const int64_t count = codes.shape(0), side = codes.shape(1);
  check_rows(lengths, "lengths", count, "codes");
  const std::vector<uint8_t> code(first_code, first_code + count * side);  // no other thread changes it
  const int64_t most = std::min<int64_t>(side, Ensemble::kLongest);
  for (int64_t row = 0; row < count; ++row)
    if (length[row] < 0 || length[row] > most)
      throw py::value_error("lengths must be in [0, " + std::to_string(most) + "], got " +
                            std::to_string(length[row]));
  py::array_t<float> probability({count, side, side});
  float* const out = probability.mutable_data();
  const Unlocked unlocked;
  std::fill_n(out, count * side * side, 0.0f);
  parallel_for(count, threads, [&](int64_t row) {
    Ensemble(code.data() + row * side, static_cast<int>(length[row]), kernels)
        .write(out + row * side * side, side);
  });
  return probability;
}

py::tuple energy_tables() {
  const auto of_pairs = [](const int8_t (&table)[6][4]) { return py::array_t<int8_t>({6, 4}, &table[0][0]); };
  return py::make_tuple(
      py::array_t<int8_t>({6, 6}, &kStack[0][0]), py::array_t<int8_t>({6, 4, 4}, &kHairpinMismatch[0][0][0]),
      py::array_t<int8_t>({4, 4}, &kInternalMismatch[0][0]), of_pairs(kDangleBefore), of_pairs(kDangleAfter));
}

}  // namespace

void bind_model(py::module_& m);  // bind_model.cpp

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "Native scan, encoding, selection and model. Arrays must have the exact dtype and be C-contiguous.";

  py::class_<HeldBatch>(m, "PairBatch",
                        "Strings as codes, and the pairs made of them; all arrays are read-only.")
      .def(py::init<py::list, py::list, py::array, py::array, int64_t>(), "mirnas"_a, "utrs"_a, "bag_mirna"_a,
           "bag_utr"_a, "threads"_a)
      .def_property_readonly("mirna", [](const HeldBatch& held) { return held.mirna.code; })
      .def_property_readonly("mirna_offsets", [](const HeldBatch& held) { return held.mirna.offsets; })
      .def_property_readonly("utr", [](const HeldBatch& held) { return held.utr.code; })
      .def_property_readonly("utr_offsets", [](const HeldBatch& held) { return held.utr.offsets; })
      .def_readonly("bag_mirna", &HeldBatch::bag_mirna)
      .def_readonly("bag_utr", &HeldBatch::bag_utr)
      .def_property_readonly("utrs_with_others",
                             [](const HeldBatch& held) {  // numbers of those with a letter outside ACGU
                               std::vector<size_t> found;
                               for (size_t utr = 0; utr < held.utr.has_other.size(); ++utr)
                                 if (held.utr.has_other[utr]) found.push_back(utr);
                               return found;
                             })
      .def(py::pickle(
          [](const HeldBatch& held) {
            return py::make_tuple(held.mirna.texts(), held.utr.texts(), held.bag_mirna, held.bag_utr);
          },
          [](const py::tuple& state) {
            return std::make_unique<HeldBatch>(state[0].cast<py::list>(), state[1].cast<py::list>(),
                                               state[2].cast<py::array>(), state[3].cast<py::array>(), 1);
          }));
  m.def("available_threads", &available_threads, "Processors this process may use.");
  m.def(
      "variants",
      [] {
        std::vector<std::string> names;
        for (const Kernels* known : variants()) names.emplace_back(known->name);
        return names;
      },
      "Instruction sets this processor can run, best first.");

  m.def("scan", &scan, "Candidates: (offsets, start, esa_score, position, alignment, n_dropped).", "batch"_a,
        "esa_min"_a, "threads"_a, "variant"_a);
  m.def("encode", &encode, "One-hot windows (M, 10, 50) uint8.", "batch"_a, "bag"_a, "start"_a, "alignment"_a,
        "threads"_a);
  m.def("aligned", &aligned, "Gapped strings (M, 2) S20: miRNA 5'->3', seed part of the window 3'->5'.",
        "batch"_a, "bag"_a, "start"_a, "alignment"_a);

  m.def("seed_matches", &seed_matches, "Seed match of windows: (kind, start, end, anchor), each (M,).",
        "batch"_a, "bag"_a, "start"_a);
  m.def("site_features", &features, "Features of windows as sites, (M, 10) float32.", "batch"_a, "bag"_a,
        "start"_a, "threads"_a);
  m.def("duplex_energy", &energies, "Energy of the best duplex of windows, (M,) float32 kcal/mol.", "batch"_a,
        "bag"_a, "start"_a, "threads"_a);
  m.def("duplex_costs", &duplex_costs,
        "Tenths of a kcal/mol: stacks by miRNA letter before, miRNA letter, window letter before, window "
        "letter; ends of helices by miRNA and window letter; of letters that do not pair; to open a loop; of "
        "a letter in it.");
  m.def("site_context", &context, "Features of windows among those of their bag, (M, 3) float32.", "batch"_a,
        "offsets"_a, "start"_a);
  m.def("bag_features", &pair_features, "Features of pairs, (B, 12) float32.", "batch"_a, "n_candidates"_a);

  m.def("select", &select_rows, "STSelector over a ragged batch: (rows, offsets, reason).", "cheap_logit"_a,
        "cheap_embedding"_a, "position"_a, "offsets"_a, "config"_a, "threads"_a = 0, "keep"_a = py::none());
  m.def("simhash_keys", &keys_of, "(N,) uint32 sign keys of (N, D) float32 embeddings.", "embedding"_a,
        "rng_seed"_a, "threads"_a = 0, "offsets"_a = py::none());
  m.def("simhash_dims", &dims_of, "The dimensions behind the key bits, bit 0 first.", "rng_seed"_a,
        "width"_a);
  m.def("pair_probabilities", &pair_probabilities,
        "Probabilities (B, L, L) float32 that bases pair in equilibrium at 37 degrees C.", "codes"_a,
        "lengths"_a, "threads"_a, "variant"_a = "auto");
  m.attr("LONGEST") = int{Ensemble::kLongest};
  m.def("energy_tables", &energy_tables,
        "Tenths of a kcal/mol by pair (CG GC GU UG AU UA) and letters: stacks; first mismatches of hairpins, "
        "of internal loops; dangling ends before and after a pair.");
  bind_model(m);
}
