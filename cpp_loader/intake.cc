#include "intake.h"

#include <stdexcept>

namespace reprise {
namespace {

// Interned once, for the life of the process.
PyObject* Name(const char* text) { return PyUnicode_InternFromString(text); }

Object Attribute(PyObject* object, const char* name) { return Object::Own(PyObject_GetAttrString(object, name)); }

const dlpack::ExchangeApi* FindApi(PyTypeObject* tensor_type) {
  const Object capsule = Attribute(reinterpret_cast<PyObject*>(tensor_type), dlpack::kExchangeApiAttribute);
  const void* pointer = capsule ? PyCapsule_GetPointer(capsule.get(), dlpack::kExchangeApiName) : nullptr;
  PyErr_Clear();
  const auto* api = static_cast<const dlpack::ExchangeApi*>(pointer);
  while (api && api->version.major != dlpack::kMajorVersion) api = api->previous;
  return api && api->view_of_object ? api : nullptr;
}

// torch's count of in-place changes, -1 for tensors without one (made in inference mode).
int64_t VersionOf(PyObject* tensor) {
  static PyObject* const name = Name("_version");
  // Looked up once: tensors come one by one, to caches that know nothing of their type any more.
  static const PyTypeObject* type = nullptr;
  static const PyGetSetDef* getter = nullptr;  // torch's own, for the life of the process
  if (Py_TYPE(tensor) != type) {
    const Object descriptor = Attribute(reinterpret_cast<PyObject*>(Py_TYPE(tensor)), "_version");
    PyErr_Clear();
    const bool simple = descriptor && Py_TYPE(descriptor.get()) == &PyGetSetDescr_Type;
    getter = simple ? reinterpret_cast<PyGetSetDescrObject*>(descriptor.get())->d_getset : nullptr;
    type = Py_TYPE(tensor);
  }
  const Object version = Object::Own(getter ? getter->get(tensor, getter->closure) : PyObject_GetAttr(tensor, name));
  const int64_t number = version ? PyLong_AsLongLong(version.get()) : -1;
  PyErr_Clear();
  return number;
}

// Whether what lies in memory is the conjugate or the negative of the tensor, which neither DLPack nor strides say.
bool IsLazy(PyObject* tensor) {
  static PyObject* const names[] = {Name("is_neg"), Name("is_conj")};
  for (PyObject* const name : names) {
    const Object answer = Object::Own(PyObject_CallMethodNoArgs(tensor, name));
    if (answer.get() != Py_False) {
      PyErr_Clear();
      return true;
    }
  }
  return false;
}

}  // namespace

void KeptBatch::Keep(PyObject* name, PyObject* tensor) {
  entries_.push_back({Object::Share(name), Object::Share(tensor), VersionOf(tensor)});
}

std::string KeptBatch::Changed() const {
  for (const Entry& entry : entries_) {
    if (entry.version >= 0 && VersionOf(entry.tensor.get()) != entry.version) {
      return PyUnicode_AsUTF8(entry.name.get());
    }
  }
  return "";
}

Intake::Intake(PyObject* prototypes, PyObject* labels, int cuda_device, PyObject* current_stream)
    : cuda_device_(cuda_device), current_stream_(Object::Share(current_stream)), task_name_(Object::Own(Name("task"))) {
  tensor_type_ = Py_TYPE(labels);
  api_ = FindApi(tensor_type_);
  labels_ = Describe(Object::Own(Name("y")).get(), labels);
  PyObject* name;
  PyObject* prototype;
  for (Py_ssize_t position = 0; PyDict_Next(prototypes, &position, &name, &prototype);) {
    fields_.push_back(Describe(name, prototype));
  }
}

Intake::Column Intake::Describe(PyObject* name, PyObject* prototype) {
  Column column{Object::Share(name), Attribute(prototype, "dtype"), {}, {}, false};
  const Object complex = Object::Own(PyObject_CallMethod(prototype, "is_complex", nullptr));
  PyErr_Clear();
  column.is_complex = complex.get() == Py_True;
  const Object shape = Attribute(prototype, "shape");
  if (!column.dtype || !shape || PyTuple_Size(shape.get()) < 1) {
    PyErr_Clear();
    throw std::invalid_argument("a prototype must be a tensor (0, *shape)");
  }
  for (Py_ssize_t i = 1; i < PyTuple_Size(shape.get()); ++i) {
    column.shape.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(shape.get(), i)));
  }
  dlpack::Tensor view;
  if (api_ && api_->view_of_object(prototype, &view) == 0) {
    column.type = view.type;
  } else {
    PyErr_Clear();
    column.type = {0, 0, 0};  // a dtype that DLPack does not know: asked for by attributes
  }
  return column;
}

bool Intake::Read(PyObject* fields, PyObject* labels, PyObject* task, Batch& batch, KeptBatch& kept) const {
  View view;
  if (!ReadTensor(labels, labels_, view)) return false;
  const int64_t rows = view.rows;
  batch.rows = static_cast<uint64_t>(rows);
  batch.labels = reinterpret_cast<const int64_t*>(view.data);
  batch.labels_on_device = view.on_device;
  batch.stream = CurrentStream();

  if (task == Py_None) {
    batch.task = -1;
  } else if (PyLong_CheckExact(task)) {
    int overflow = 0;
    batch.task = PyLong_AsLongLongAndOverflow(task, &overflow);
    if (overflow) return false;
  } else {
    if (!ReadTensor(task, labels_, view) || view.rows != rows) return false;
    batch.tasks = reinterpret_cast<const int64_t*>(view.data);
    batch.tasks_on_device = view.on_device;
  }

  if (PyDict_Size(fields) != static_cast<Py_ssize_t>(fields_.size())) return false;
  batch.fields.reserve(fields_.size());
  for (const Column& column : fields_) {
    PyObject* const value = PyDict_GetItemWithError(fields, column.name.get());
    if (!value || !ReadTensor(value, column, view) || view.rows != rows) {
      PyErr_Clear();
      return false;
    }
    batch.fields.push_back(view.data);
    if (cuda_device_ >= 0) batch.fields_on_device.push_back(view.on_device);
    kept.Keep(column.name.get(), value);
  }
  kept.Keep(labels_.name.get(), labels);
  if (batch.tasks) kept.Keep(task_name_.get(), task);
  return true;
}

Cuda::Stream Intake::CurrentStream() const {
  if (cuda_device_ < 0) return nullptr;
  Cuda::Stream stream = nullptr;
  if (api_ && api_->current_stream && api_->current_stream(dlpack::kCuda, cuda_device_, &stream) == 0) return stream;
  PyErr_Clear();
  const Object handle = Object::Own(PyObject_CallNoArgs(current_stream_.get()));
  if (handle) stream = PyLong_AsVoidPtr(handle.get());
  PyErr_Clear();
  return stream;
}

bool Intake::ReadTensor(PyObject* object, const Column& column, View& view) const {
  if (Py_TYPE(object) != tensor_type_) return false;
  if (column.is_complex && IsLazy(object)) return false;
  if (!column.type.bits) return !IsLazy(object) && ReadByAttributes(object, column, view);
  dlpack::Tensor tensor;
  if (api_->view_of_object(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  const bool on_host = tensor.device.type == dlpack::kCpu || tensor.device.type == dlpack::kCudaHost;
  const bool on_device = tensor.device.type == dlpack::kCuda && tensor.device.index == cuda_device_;
  if (!(tensor.type == column.type) || !(on_host || on_device) ||
      tensor.ndim != static_cast<int32_t>(column.shape.size()) + 1) {
    return false;
  }
  const bool has_strides = tensor.strides && tensor.shape[0] > 0;  // without rows any strides will do
  int64_t stride = 1;
  for (int32_t i = tensor.ndim - 1; i > 0; --i) {
    const int64_t size = column.shape[static_cast<size_t>(i) - 1];
    if (tensor.shape[i] != size || (has_strides && size > 1 && tensor.strides[i] != stride)) return false;
    stride *= size;
  }
  if (has_strides && tensor.shape[0] > 1 && tensor.strides[0] != stride) return false;
  // Of the imaginary part of a conjugate, only a single number has its rows back to back.
  if (stride == 1 && tensor.shape[0] == 1 && IsLazy(object)) return false;
  view = {static_cast<const std::byte*>(tensor.data) + tensor.byte_offset, tensor.shape[0], on_device};
  return true;
}

bool Intake::ReadByAttributes(PyObject* object, const Column& column, View& view) const {
  const Object dtype = Attribute(object, "dtype");
  const Object shape = Attribute(object, "shape");
  const Object on_host = Attribute(object, "is_cpu");
  const Object on_cuda = Attribute(object, "is_cuda");
  const Object index = Object::Own(PyObject_CallMethod(object, "get_device", nullptr));
  const Object contiguous = Object::Own(PyObject_CallMethod(object, "is_contiguous", nullptr));
  const Object address = Object::Own(PyObject_CallMethod(object, "data_ptr", nullptr));
  PyErr_Clear();
  if (!dtype || !shape || !on_host || !on_cuda || !index || !contiguous || !address) return false;
  const bool on_device = on_cuda.get() == Py_True && PyLong_AsLong(index.get()) == cuda_device_;
  if (!on_device && on_host.get() != Py_True) return false;
  if (dtype.get() != column.dtype.get() || contiguous.get() != Py_True) return false;
  if (PyTuple_Size(shape.get()) != static_cast<Py_ssize_t>(column.shape.size()) + 1) return false;
  for (size_t i = 0; i < column.shape.size(); ++i) {
    if (PyLong_AsLongLong(PyTuple_GET_ITEM(shape.get(), static_cast<Py_ssize_t>(i) + 1)) != column.shape[i])
      return false;
  }
  view = {static_cast<const std::byte*>(PyLong_AsVoidPtr(address.get())),
          PyLong_AsLongLong(PyTuple_GET_ITEM(shape.get(), 0)), on_device};
  return true;
}

}  // namespace reprise
