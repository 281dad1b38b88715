// The one file that knows pybind11. Thin: every function here forwards to one function of the engine.
//
// Batches cross as torch tensors (intake.h), which are kept alive here until the engine has copied them; contents to
// load or read as addresses; staging memory as buffers that keep themselves alive. The GIL is released only where a
// call may block or copies much. std::invalid_argument becomes ValueError, every other error RuntimeError. The
// signatures are repeated for type checkers in _core.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine.h"
#include "intake.h"
#include "network.h"
#include "version.h"

namespace py = pybind11;

namespace {

using reprise::Engine;

using Address = uintptr_t;
using Network = std::tuple<std::string, std::string, std::string, uint64_t>;  // library, devices, transports, key

const std::byte* Bytes(Address address) { return reinterpret_cast<const std::byte*>(address); }

std::vector<const std::byte*> AllBytes(const std::vector<Address>& addresses) {
  std::vector<const std::byte*> pointers;
  pointers.reserve(addresses.size());
  for (const Address address : addresses) pointers.push_back(Bytes(address));
  return pointers;
}

// Staging memory as Python sees it: a writable buffer that keeps the memory.
struct Memory {
  std::shared_ptr<reprise::Slab> slab;
};

using Int64s = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

py::array_t<int64_t> ToArray(const std::vector<int64_t>& values) {
  return py::array_t<int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict ToDict(const reprise::PolicyState& state) {
  py::dict result;
  for (const auto& [key, value] : state) {
    if (const auto* const number = std::get_if<int64_t>(&value)) {
      result[py::str(key)] = *number;
    } else {
      result[py::str(key)] = ToArray(std::get<std::vector<int64_t>>(value));
    }
  }
  return result;
}

reprise::PolicyState FromDict(const py::dict& state) {
  reprise::PolicyState result;
  for (const auto& [key, value] : state) {
    if (py::isinstance<py::int_>(value)) {
      result[py::cast<std::string>(key)] = py::cast<int64_t>(value);
    } else {
      const auto array = py::cast<Int64s>(value);
      result[py::cast<std::string>(key)] = std::vector<int64_t>(array.data(), array.data() + array.size());
    }
  }
  return result;
}

py::tuple ToTuple(const reprise::Delivery& delivery) {
  py::tuple sizes(delivery.sizes.size());
  for (size_t i = 0; i < delivery.sizes.size(); ++i) sizes[i] = delivery.sizes[i];
  return py::make_tuple(delivery.slot, std::move(sizes));
}

// The engine and the tensors that it may still read.
class BoundEngine {
 public:
  BoundEngine(reprise::EngineOptions options, const py::dict& prototypes, const py::object& labels,
              const py::object& current_stream, py::object wrap, py::object report)
      : all_rows_(options.draws),
        wrap_(std::move(wrap)),
        report_(std::move(report)),
        intake_(prototypes.ptr(), labels.ptr(), options.cuda_device, current_stream.ptr()),
        engine_(new Engine(std::move(options))) {}
  ~BoundEngine() {
    if (!closed_) Close();
  }

  Engine& engine() const { return *engine_; }

  py::object Submit(PyObject* const* arguments, Py_ssize_t count) {
    if (count != 3 || !PyDict_Check(arguments[0])) throw py::type_error("submit(fields, labels, task)");
    const auto start = reprise::Timed::Clock::now();
    Release();
    reprise::Batch batch;
    reprise::KeptBatch kept;
    if (!intake_.Read(arguments[0], arguments[1], arguments[2], batch, kept)) return py::bool_(false);
    uint64_t number;
    if (engine_->behind()) {
      const py::gil_scoped_release release;
      number = engine_->Submit(std::move(batch));
    } else {
      number = engine_->Submit(std::move(batch));
    }
    kept_.emplace_back(number, std::move(kept));
    submit_time_.Add(start, reprise::Timed::Clock::now());
    return py::bool_(true);
  }

  py::tuple Wait() { return ToTuple(Delivered()); }

  py::object Draws(PyObject* const*, Py_ssize_t count) {
    if (count != 0) throw py::type_error("draws()");
    const reprise::Delivery delivery = Delivered();
    // Those of a buffer that is still filling do not come again.
    if (delivery.sizes != all_rows_) return Wrapped(delivery);
    py::object& wrapped = wrapped_[delivery.slot];
    if (!wrapped) wrapped = Wrapped(delivery);
    return wrapped;
  }

  void ReserveFront(uint64_t rows) {
    {
      const py::gil_scoped_release release;
      engine_->ReserveFront(rows);
    }
    wrapped_ = {};
  }

  reprise::Delivery Delivered() {
    const reprise::Cuda::Stream stream = intake_.CurrentStream();
    reprise::Delivery delivery;
    if (engine_->ready()) {
      delivery = engine_->Wait(stream);
    } else {
      const py::gil_scoped_release release;
      delivery = engine_->Wait(stream);
    }
    Release();
    ReportLost();
    return delivery;
  }

  void Drain() {
    {
      const py::gil_scoped_release release;
      engine_->Drain();
    }
    Release();
    ReportLost();
  }

  void SubmitDraw() {
    const reprise::Cuda::Stream stream = intake_.CurrentStream();
    const py::gil_scoped_release release;
    engine_->SubmitDraw(stream);
  }

  void Load(const py::dict& policy, uint64_t step, uint64_t submitted, bool started,
            const std::vector<std::pair<uint64_t, uint64_t>>& fills, const std::vector<Address>& columns) {
    Drain();  // steps are numbered anew: nothing may be kept under an old number
    const reprise::PolicyState state = FromDict(policy);
    std::vector<reprise::Fill> all;
    for (const auto& [stored, mass] : fills) all.push_back({stored, mass});
    const py::gil_scoped_release release;
    engine_->Load(state, step, submitted, started, all, AllBytes(columns));
  }

  py::tuple OwnAddress() const {
    const reprise::PeerAddress address = engine_->address();
    return py::make_tuple(address.process, address.descriptor, address.bytes, address.token, address.share,
                          py::bytes(address.network));
  }

  void Connect(const py::list& addresses) {
    std::vector<reprise::PeerAddress> all;
    for (const py::handle& entry : addresses) {
      const auto [name, mapped, process, descriptor, bytes, token, share, network] =
          py::cast<std::tuple<std::string, bool, int64_t, int, uint64_t, uint64_t, uint32_t, py::bytes>>(entry);
      all.push_back({name, network, mapped, process, descriptor, bytes, token, share});
    }
    engine_->Connect(std::move(all));
  }

  py::list Fills() {
    std::vector<reprise::Fill> fills;
    {
      const py::gil_scoped_release release;
      fills = engine_->fills();
    }
    ReportLost();
    py::list result;
    for (const auto& [stored, mass] : fills) result.append(py::make_tuple(stored, mass));
    return result;
  }

  void SetDeviceRows(uint32_t slot, std::vector<Address> columns) {
    const reprise::Cuda::Stream stream = intake_.CurrentStream();
    wrapped_.at(slot) = {};
    const py::gil_scoped_release release;
    engine_->SetDeviceRows(slot, {columns.begin(), columns.end()}, stream);
  }

  void Close() {
    closed_ = true;
    {
      const py::gil_scoped_release release;
      engine_->Close();
    }
    kept_.clear();
    wrapped_ = {};
  }

  py::dict Stats() const {
    py::dict result;
    AddStats(result, "submit", submit_time_.stats());
    for (const auto& [name, part] : engine_->timings()) AddStats(result, name, part->stats());
    return result;
  }

  py::dict Recent() const {
    py::dict result;
    AddRecent(result, "submit", submit_time_);
    for (const auto& [name, part] : engine_->timings()) AddRecent(result, name, *part);
    return result;
  }

 private:
  static void AddStats(py::dict& result, const std::string& name, const reprise::Histogram::Stats& stats) {
    if (!stats.count) return;
    py::dict entry;
    entry["count"] = stats.count;
    entry["total_ms"] = stats.total_ms;
    entry["mean_ms"] = stats.mean_ms;
    entry["p50_ms"] = stats.p50_ms;
    entry["p95_ms"] = stats.p95_ms;
    result[py::str(name)] = std::move(entry);
  }

  static void AddRecent(py::dict& result, const std::string& name, const reprise::Timed& part) {
    py::list intervals;
    for (const auto& [begin_ns, end_ns] : part.recent()) intervals.append(py::make_tuple(begin_ns, end_ns));
    if (!intervals.empty()) result[py::str(name)] = std::move(intervals);
  }

  py::object Wrapped(const reprise::Delivery& delivery) const {
    const py::tuple pair = ToTuple(delivery);
    return wrap_(pair[0], pair[1]);
  }

  void ReportLost() {
    if (!engine_->any_lost()) return;
    for (const std::string& line : engine_->TakeLost()) report_(line);
  }

  // Let go of batches that have been copied. Throws for one that was changed before that.
  void Release() {
    const uint64_t done = engine_->done();
    while (!kept_.empty() && kept_.front().first <= done) {
      const reprise::KeptBatch kept = std::move(kept_.front().second);
      kept_.pop_front();
      const std::string changed = kept.Changed();
      if (!changed.empty()) {
        throw std::runtime_error("'" + changed +
                                 "' was changed in place after submit() and before the buffer had copied it, so what "
                                 "is stored may be wrong; leave a batch alone until the draw that follows it has been "
                                 "delivered, or use submit(..., copy=True)");
      }
    }
  }

  const std::vector<uint32_t> all_rows_;  // of each draw, once as much is stored
  const py::object wrap_;
  std::array<py::object, Engine::kSlots> wrapped_;  // what wrap_ has made of a slot's complete draws
  py::object report_;
  reprise::Intake intake_;
  std::deque<std::pair<uint64_t, reprise::KeptBatch>> kept_;  // by step
  reprise::Timed submit_time_;
  bool closed_ = false;
  reprise::EngineHandle engine_;
};

// A method that is called without pybind11's dispatch. On caches that a training step has filled, that takes longer
// than what a step does here.
template <py::object (BoundEngine::*kMethod)(PyObject* const*, Py_ssize_t)>
PyObject* Call(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  auto* const engine =
      static_cast<BoundEngine*>(reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder().value_ptr());
  try {
    return (engine->*kMethod)(arguments, count).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <py::object (BoundEngine::*kMethod)(PyObject* const*, Py_ssize_t)>
void DefineStepCall(py::class_<BoundEngine>& type, const char* name) {
  static PyMethodDef definition = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(Call<kMethod>)),
                                   METH_FASTCALL, nullptr};
  type.attr(name) =
      py::reinterpret_steal<py::object>(PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &definition));
}

py::tuple StagingOf(const Engine& engine, uint32_t slot) {
  const reprise::Staging& staging = engine.staging(slot);
  py::list offsets;
  for (const std::byte* column : staging.columns()) offsets.append(column - staging.memory()->data());
  return py::make_tuple(Memory{staging.memory()}, staging.front(), std::move(offsets));
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  using Release = py::call_guard<py::gil_scoped_release>;

  module.doc() = "The C++ engine of Reprise.";
  module.def("version", &reprise::Version, "One line: interface version, C++ standard and compiler of this build.");

  module.def("why_no_network", &reprise::WhyNoNetwork, py::arg("library"),
             "Why ranks on other nodes cannot be read with this library of UCX; empty when they can.");

  py::class_<Memory>(module, "Memory", py::buffer_protocol()).def_buffer([](const Memory& memory) {
    return py::buffer_info(reinterpret_cast<uint8_t*>(memory.slab->data()),
                           static_cast<py::ssize_t>(memory.slab->size()));
  });

  py::class_<BoundEngine> engine(module, "Engine", "One rank's rehearsal engine; see src/engine.h.");
  DefineStepCall<&BoundEngine::Submit>(engine, "submit");
  DefineStepCall<&BoundEngine::Draws>(engine, "draws");
  engine
      .def(py::init([](const py::dict& prototypes, const py::object& labels, std::vector<uint64_t> field_bytes,
                       uint32_t share, std::string policy, std::vector<uint32_t> draws, uint32_t candidates,
                       uint64_t seed, uint32_t rank, uint32_t world_size, unsigned threads, std::string storage,
                       int cuda_device, const py::object& current_stream, bool exchanges, bool deterministic,
                       double limit_s, const std::optional<Network>& network, py::object wrap, py::object report) {
             reprise::EngineOptions options{std::move(field_bytes),
                                            share,
                                            std::move(policy),
                                            std::move(draws),
                                            candidates,
                                            seed,
                                            rank,
                                            world_size,
                                            threads,
                                            std::move(storage)};
             options.cuda_device = cuda_device;
             options.exchanges = exchanges;
             options.deterministic = deterministic;
             options.limit_s = limit_s;
             if (network) {
               options.network.emplace();
               std::tie(options.network->library, options.network->devices, options.network->transports,
                        options.network->key) = *network;
             }
             return std::make_unique<BoundEngine>(std::move(options), prototypes, labels, current_stream,
                                                  std::move(wrap), std::move(report));
           }),
           py::kw_only(), py::arg("prototypes"), py::arg("labels"), py::arg("field_bytes"), py::arg("share"),
           py::arg("policy"), py::arg("draws"), py::arg("candidates"), py::arg("seed"), py::arg("rank"),
           py::arg("world_size"), py::arg("threads"), py::arg("storage"), py::arg("cuda_device"),
           py::arg("current_stream"), py::arg("exchanges"), py::arg("deterministic"), py::arg("limit_s"),
           py::arg("network"), py::arg("wrap"), py::arg("report"))
      .def(
          "why_silent", [](BoundEngine& self, uint32_t rank) { return self.engine().WhySilent(rank); }, Release())
      .def(
          "describe_peers", [](BoundEngine& self) { return self.engine().DescribePeers(); }, Release())
      .def("address", &BoundEngine::OwnAddress)
      .def("connect", &BoundEngine::Connect)
      .def("fills", &BoundEngine::Fills)
      .def("wait", &BoundEngine::Wait)
      .def("drain", &BoundEngine::Drain)
      .def("close", &BoundEngine::Close)
      .def("stats", &BoundEngine::Stats)
      .def("recent", &BoundEngine::Recent)
      .def("submit_draw", &BoundEngine::SubmitDraw)
      .def("set_device_rows", &BoundEngine::SetDeviceRows)
      .def("not_pinned", [](const BoundEngine& self) { return self.engine().not_pinned(); })
      .def("next_slot", [](const BoundEngine& self) { return self.engine().next_slot(); })
      .def("staging", [](const BoundEngine& self, uint32_t slot) { return StagingOf(self.engine(), slot); })
      .def("reserve_front", &BoundEngine::ReserveFront)
      .def(
          "stored", [](BoundEngine& self) { return self.engine().stored(); }, Release())
      .def(
          "submitted", [](BoundEngine& self) { return self.engine().submitted(); }, Release())
      .def(
          "step", [](BoundEngine& self) { return self.engine().step(); }, Release())
      .def(
          "mass", [](BoundEngine& self) { return self.engine().mass(); }, Release())
      .def("started", [](const BoundEngine& self) { return self.engine().started(); })
      .def("labels", [](BoundEngine& self) { return ToArray(self.engine().labels()); })
      .def("versions", [](BoundEngine& self) { return ToArray(self.engine().versions()); })
      .def("policy_state", [](BoundEngine& self) { return ToDict(self.engine().policy_state()); })
      .def("read_column",
           [](BoundEngine& self, size_t column, const Int64s& slots, Address target) {
             const std::span<const int64_t> wanted(slots.data(), static_cast<size_t>(slots.size()));
             const py::gil_scoped_release release;
             self.engine().ReadColumn(column, wanted, reinterpret_cast<std::byte*>(target));
           })
      .def("estates",
           [](BoundEngine& self) {
             const auto found = [&self] {
               const py::gil_scoped_release release;
               return self.engine().Estates();
             }();
             py::list estates;
             for (const auto& estate : found) {
               const auto count = static_cast<py::ssize_t>(estate.slots.size());
               estates.append(py::make_tuple(estate.rank, estate.held.stored, estate.held.mass, ToArray(estate.slots),
                                             ToArray(estate.versions),
                                             py::array_t<double>(count, estate.inverse_inclusion.data())));
             }
             return estates;
           })
      .def("read_estate",
           [](BoundEngine& self, uint32_t rank, size_t column, const Int64s& slots, Address target) {
             const std::span<const int64_t> wanted(slots.data(), static_cast<size_t>(slots.size()));
             const py::gil_scoped_release release;
             self.engine().ReadEstate(rank, column, wanted, reinterpret_cast<std::byte*>(target));
           })
      .def("load", &BoundEngine::Load)
      .def(
          "adopt_draw",
          [](BoundEngine& self, std::vector<uint32_t> sizes) { return self.engine().AdoptDraw(std::move(sizes)); },
          Release())
      .def("pending",
           [](BoundEngine& self) {
             py::list draws;
             for (const auto& delivery : self.engine().pending()) draws.append(ToTuple(delivery));
             return draws;
           })
      .def("fail_next_step", [](BoundEngine& self, const std::string& message) {
        self.engine().FailNextStep(std::make_exception_ptr(std::runtime_error(message)));
      });
}
