// Checked arguments of the extension's functions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "parallel.hpp"
#include "scan.hpp"

namespace pairformer {

namespace py = pybind11;
using namespace pybind11::literals;

// Without Python's lock. A thread that wants it back when the interpreter has ended gets none: Python unwinds
// it, which no destructor may let through, so it sleeps until the process is gone.
struct Unlocked {
  PyThreadState* const state = PyEval_SaveThread();
  ~Unlocked() {
    try {
      PyEval_RestoreThread(state);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
};

// The data of an array of exactly this type, C-contiguous, of `ndim` dimensions (shape is for the message).
template <class T>
const T* checked(const py::array& array, const std::string& name, int ndim, const char* shape) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw py::type_error(name + " must be " + std::string(py::str(py::dtype::of<T>())) + ", got " +
                         std::string(py::str(array.dtype())));
  }
  if (array.ndim() != ndim) {
    throw py::value_error(name + " must have shape " + shape + ", got " +
                          std::string(py::str(array.attr("shape"))));
  }
  constexpr int kPlain =
      py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array.flags() & kPlain) != kPlain) {
    throw py::value_error(name + " must be C-contiguous and aligned, got strides " +
                          std::string(py::str(array.attr("strides"))) + "; pass " + name + ".copy()");
  }
  return static_cast<const T*>(array.data());
}

// `what` is the array that says how many rows there are.
inline void check_rows(const py::array& array, const std::string& name, int64_t n, const std::string& what) {
  if (array.shape(0) != n) {
    throw py::value_error(name + " must have " + std::to_string(n) + " rows (as " + what + "), got " +
                          std::to_string(array.shape(0)));
  }
}

// A copy, which no other thread changes, of an array of shape (M,).
template <class T>
std::vector<T> copied(const py::array& array, const std::string& name, const char* shape) {
  const T* data = checked<T>(array, name, 1, shape);
  return {data, data + array.shape(0)};
}

// Offsets start at 0, never fall and end at n, the number of entries of `what`.
inline std::vector<int64_t> checked_offsets(const py::array& array, const std::string& name, int64_t n,
                                            const std::string& what) {
  auto offsets = copied<int64_t>(array, name, "(B + 1,)");
  const auto size = static_cast<int64_t>(offsets.size());
  if (size == 0 || offsets[0] != 0) {
    throw py::value_error(name + " must start at 0, got " +
                          (size == 0 ? "no entry" : std::to_string(offsets[0])));
  }
  for (int64_t b = 1; b < size; ++b) {
    if (offsets[b] < offsets[b - 1]) {
      throw py::value_error(name + " must not fall, got " + std::to_string(offsets[b]) + " after " +
                            std::to_string(offsets[b - 1]) + " at entry " + std::to_string(b));
    }
  }
  if (offsets[size - 1] != n) {
    throw py::value_error(name + " must end at " + std::to_string(n) + " (rows of " + what + "), got " +
                          std::to_string(offsets[size - 1]));
  }
  return offsets;
}

// Offsets are those of a batch's bags.
inline void check_bags(const std::vector<int64_t>& offsets, const std::string& name, int64_t bags) {
  if (static_cast<int64_t>(offsets.size()) != bags + 1)
    throw py::value_error(name + " must have one entry more than there are bags (" + std::to_string(bags) +
                          "), got " + std::to_string(offsets.size()));
}

// 0 means all that this process may use; more than those would only get in each other's way.
inline int checked_threads(int64_t threads) {
  if (threads < 0) throw py::value_error("threads must be 0 (all) or more, got " + std::to_string(threads));
  if (threads == 1) return 1;
  const int available = available_threads();
  return threads == 0 ? available : static_cast<int>(std::min<int64_t>(threads, available));
}

// Strings as codes, one after the other. ASCII is read in place; a letter outside it becomes '?', so that a
// letter is one byte whatever it is.
struct CodedStrings {
  py::array_t<uint8_t> code;
  py::array_t<int64_t> offsets;
  std::vector<bool> has_other;

  CodedStrings(const py::list& strings, int threads) : offsets(static_cast<py::ssize_t>(strings.size()) + 1) {
    std::vector<py::object> held;  // another thread may empty the list
    std::vector<Text> texts;
    int64_t* end = offsets.mutable_data();
    *end = 0;
    for (const py::handle string : strings) {
      if (!PyUnicode_Check(string.ptr()))
        throw py::type_error(std::string("sequences must be strings, got ") + Py_TYPE(string.ptr())->tp_name);
      const auto* letters = static_cast<const uint8_t*>(PyUnicode_DATA(string.ptr()));
      held.push_back(py::reinterpret_borrow<py::object>(string));
      if (!PyUnicode_IS_ASCII(string.ptr())) {
        PyObject* bytes = PyUnicode_AsEncodedString(string.ptr(), "ascii", "replace");
        if (!bytes) throw py::error_already_set();
        held.push_back(py::reinterpret_steal<py::object>(bytes));
        letters = reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(bytes));
      }
      texts.push_back({letters, static_cast<int64_t>(PyUnicode_GET_LENGTH(string.ptr()))});
      if (texts.back().length > INT32_MAX)
        throw py::value_error("sequences must have at most 2147483647 letters, got " +
                              std::to_string(texts.back().length));
      end[1] = end[0] + texts.back().length;
      ++end;
    }
    code = py::array_t<uint8_t>(*end);
    uint8_t* const data = code.mutable_data();
    {
      const Unlocked unlocked;
      has_other = encode_texts(texts, data, threads);
    }
    code.attr("setflags")("write"_a = false);
    offsets.attr("setflags")("write"_a = false);
  }

  Ragged<uint8_t> view() const { return {code.data(), offsets.data(), offsets.size() - 1}; }

  // The strings in capitals, U for T and N for a letter outside ACGU.
  py::list texts() const {
    py::list found;
    for (int64_t i = 0; i + 1 < offsets.size(); ++i) {
      std::string text(code.data() + offsets.data()[i], code.data() + offsets.data()[i + 1]);
      for (char& letter : text) letter = "ACGUN"[static_cast<int>(letter)];
      found.append(text);
    }
    return found;
  }
};

// A PairBatch and the arrays it looks into.
struct HeldBatch {
  CodedStrings mirna, utr;
  py::array bag_mirna, bag_utr;
  PairBatch view;

  HeldBatch(const py::list& mirnas, const py::list& utrs, py::array bag_mirna_, py::array bag_utr_,
            int64_t threads)
      : mirna(mirnas, 1),
        utr(utrs, checked_threads(threads)),
        bag_mirna(bag_mirna_.attr("copy")()),
        bag_utr(bag_utr_.attr("copy")()) {
    view.mirna = mirna.view();
    view.utr = utr.view();
    view.utr_has_other = utr.has_other;
    view.bags = bag_mirna.size();
    view.bag_mirna = members(bag_mirna, "bag_mirna", view.mirna.bags);
    view.bag_utr = members(bag_utr, "bag_utr", view.utr.bags);
    for (int64_t i = 0; i < view.mirna.bags; ++i)
      if (view.mirna.size(i) > kMaxMirna)
        throw py::value_error("mirna must have at most 35 letters, got " +
                              std::to_string(view.mirna.size(i)));
    for (int64_t i = 0; i < mirna.code.size(); ++i)
      if (view.mirna.data[i] >= kNoBase) throw py::value_error("mirna must have letters ACGU (or T) only");
  }

  const int32_t* members(py::array& numbers, const std::string& name, int64_t count) const {
    const int32_t* data = checked<int32_t>(numbers, name, 1, "(B,)");
    if (numbers.size() != view.bags)
      throw py::value_error(name + " must have one entry per bag (" + std::to_string(view.bags) + "), got " +
                            std::to_string(numbers.size()));
    for (int64_t i = 0; i < view.bags; ++i)
      if (data[i] < 0 || data[i] >= count)
        throw py::value_error(name + " must be in [0, " + std::to_string(count) + "), got " +
                              std::to_string(data[i]));
    numbers.attr("setflags")("write"_a = false);
    return data;
  }
};

}  // namespace pairformer
