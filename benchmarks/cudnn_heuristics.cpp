// Asks cuDNN's heuristics which engines they rank for convolutions on a GPU that need not be there.
//
// The GPU is described by a JSON text, the only argument. Every line of the standard input is one question:
//
//     operation type batch channels filters depth height width taps-z taps-y taps-x stride pad-z pad-y pad-x
//
// The operation is `fwd`, `dgrad` or `wgrad`. Shapes are those of the convolution whose pass it is, all tensors are
// channels-last and aligned as PyTorch's. Every line of the output answers one question, for the modes A, B and
// fallback in this order, separated by `|`. An engine is its number, the letters of its notes, and the bytes of its
// workspace or `-` if no plan can be made of it: `22t:0`. At most LISTED engines of a mode are listed, and the first
// on tensor cores wherever it stands; one that is left out is a `.`, and the number of all follows a `#`.
//
// cuDNN answers without a device from version 9.8 on.

#include <cudnn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

// PyTorch times no more, by default
constexpr size_t LISTED = 10;
constexpr int64_t ALIGNMENT = 32;

using Descriptor = cudnnBackendDescriptor_t;

void check(cudnnStatus_t status, const char *what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char message[2048] = "";
  cudnnGetLastErrorString(message, sizeof message);
  std::fprintf(stderr, "cuDNN: %s: %s: %s\n", what, cudnnGetErrorString(status), message);
  std::exit(1);
}

Descriptor create(cudnnBackendDescriptorType_t type) {
  Descriptor made;
  check(cudnnBackendCreateDescriptor(type, &made), "create a descriptor");
  return made;
}

void set(Descriptor on, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
         const void *value) {
  check(cudnnBackendSetAttribute(on, name, type, count, value), "set an attribute");
}

void set(Descriptor on, cudnnBackendAttributeName_t name, Descriptor value) {
  set(on, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

void set(Descriptor on, cudnnBackendAttributeName_t name, const std::vector<int64_t> &value) {
  set(on, name, CUDNN_TYPE_INT64, static_cast<int64_t>(value.size()), value.data());
}

void finalize(Descriptor of) { check(cudnnBackendFinalize(of), "finalize a descriptor"); }

// descriptors of one question, destroyed with it
struct Descriptors {
  std::vector<Descriptor> all;
  Descriptor operator()(cudnnBackendDescriptorType_t type) {
    all.push_back(create(type));
    return all.back();
  }
  ~Descriptors() {
    for (auto one = all.rbegin(); one != all.rend(); ++one) cudnnBackendDestroyDescriptor(*one);
  }
};

struct Question {
  std::string operation, type;
  int64_t batch, channels, filters, stride;
  std::vector<int64_t> volume{0, 0, 0}, taps{0, 0, 0}, pad{0, 0, 0};

  explicit Question(const std::string &line) {
    std::istringstream words(line);
    words >> operation >> type >> batch >> channels >> filters;
    for (auto *three : {&volume, &taps}) for (auto &length : *three) words >> length;
    words >> stride;
    for (auto &length : pad) words >> length;
    if (!words) {
      std::fprintf(stderr, "not a question: %s\n", line.c_str());
      std::exit(1);
    }
  }

  cudnnDataType_t data_type() const {
    return type == "bfloat16" ? CUDNN_DATA_BFLOAT16 : type == "float16" ? CUDNN_DATA_HALF : CUDNN_DATA_FLOAT;
  }

  std::vector<int64_t> output() const {
    std::vector<int64_t> lengths;
    for (int axis = 0; axis < 3; axis++) lengths.push_back((volume[axis] + 2 * pad[axis] - taps[axis]) / stride + 1);
    return lengths;
  }
};

Descriptor tensor(Descriptors &make, int64_t id, cudnnDataType_t type, int64_t n, int64_t c,
                  const std::vector<int64_t> &lengths) {
  std::vector<int64_t> shape{n, c, lengths[0], lengths[1], lengths[2]}, strides(5);
  int64_t stride = c;
  strides[1] = 1;
  for (int axis = 4; axis > 1; axis--) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  strides[0] = stride;
  Descriptor made = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set(made, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(made, CUDNN_ATTR_TENSOR_DIMENSIONS, shape);
  set(made, CUDNN_ATTR_TENSOR_STRIDES, strides);
  set(made, CUDNN_ATTR_TENSOR_UNIQUE_ID, std::vector<int64_t>{id});
  set(made, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, std::vector<int64_t>{ALIGNMENT});
  finalize(made);
  return made;
}

Descriptor convolution(Descriptors &make, const Question &question) {
  // as PyTorch asks for every type of data: sums in float32
  const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  const std::vector<int64_t> ones(3, 1), strides(3, question.stride);
  Descriptor made = make(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  set(made, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
  set(made, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
  set(made, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, question.pad);
  set(made, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, question.pad);
  set(made, CUDNN_ATTR_CONVOLUTION_DILATIONS, ones);
  set(made, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, strides);
  set(made, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, std::vector<int64_t>{3});
  finalize(made);
  return made;
}

Descriptor graph(Descriptors &make, const Question &question) {
  const auto type = question.data_type();
  Descriptor x = tensor(make, 'x', type, question.batch, question.channels, question.volume);
  Descriptor y = tensor(make, 'y', type, question.batch, question.filters, question.output());
  Descriptor w = tensor(make, 'w', type, question.filters, question.channels, question.taps);
  Descriptor conv = convolution(make, question), operation;
  const float one = 1, zero = 0;
  if (question.operation == "fwd") {
    operation = make(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, conv);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
  } else if (question.operation == "dgrad") {
    operation = make(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, x);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, w);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, y);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, conv);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
  } else {
    operation = make(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, x);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, w);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, y);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, conv);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
    set(operation, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
  }
  finalize(operation);
  Descriptor made = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  set(made, CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
  finalize(made);
  return made;
}

Descriptor device(const char *properties) {
  Descriptor made = create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  set(made, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
      static_cast<int64_t>(std::strlen(properties) + 1), properties);
  finalize(made);
  return made;
}

// tensor core, down-converts its inputs, sums in reduced precision, FFT, nondeterministic, Winograd, compiles
std::string notes(Descriptor engine) {
  const char *letters = "tdrfnwwwws";
  std::string found;
  cudnnBackendNumericalNote_t numerical[16];
  int64_t count = 0;
  check(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, 16, &count,
                                 numerical), "get numerical notes");
  for (int64_t i = 0; i < count; i++) found += numerical[i] < 10 ? letters[numerical[i]] : '?';
  cudnnBackendBehaviorNote_t behavior[16];
  check(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE, 16, &count,
                                 behavior), "get behaviour notes");
  for (int64_t i = 0; i < count; i++) if (behavior[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) found += 'c';
  return found;
}

// the bytes of the workspace of a plan, `-` if there is none
std::string workspace(Descriptor configuration, Descriptor gpu) {
  Descriptors make;
  Descriptor plan = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  int64_t bytes = 0, count = 0;
  const bool made =
      cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                               &configuration) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendSetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &gpu) ==
          CUDNN_STATUS_SUCCESS &&
      cudnnBackendFinalize(plan) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendGetAttribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &bytes) ==
          CUDNN_STATUS_SUCCESS;
  return made ? std::to_string(bytes) : "-";
}

std::string ranked(Descriptor operations, Descriptor gpu, cudnnBackendHeurMode_t mode) {
  Descriptors make;
  Descriptor heuristics = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  set(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations);
  set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  set(heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, gpu);
  finalize(heuristics);
  int64_t count = 0;
  check(cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count,
                                 nullptr), "count the ranked engines");
  std::vector<Descriptor> configurations;
  for (int64_t i = 0; i < count; i++) configurations.push_back(make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
  int64_t returned = 0;
  check(cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, count,
                                 &returned, configurations.data()), "get the ranked engines");
  std::string text;
  bool found = false;
  for (int64_t i = 0; i < returned; i++) {
    Descriptor engine = make(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    int64_t index = -1, got = 0;
    check(cudnnBackendGetAttribute(configurations[i], CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                   &got, &engine), "get an engine");
    check(cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &got, &index),
          "get an engine's number");
    const std::string letters = notes(engine);
    const bool on_tensor_cores = letters.find('t') != std::string::npos;
    if (static_cast<size_t>(i) >= LISTED && (found || !on_tensor_cores)) {
      text += ". ";
      continue;
    }
    const std::string bytes = workspace(configurations[i], gpu);
    found = found || (on_tensor_cores && bytes != "-");
    text += std::to_string(index) + letters + ":" + bytes + " ";
  }
  return text + "#" + std::to_string(returned);
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s PROPERTIES-OF-A-GPU < QUESTIONS\n", argv[0]);
    return 2;
  }
  Descriptor gpu = device(argv[1]);
  std::printf("cuDNN %zu\n", cudnnGetVersion());
  for (std::string line; std::getline(std::cin, line);) {
    const Question question(line);
    Descriptors make;
    Descriptor operations = graph(make, question);
    std::printf("%s | %s | %s\n", ranked(operations, gpu, CUDNN_HEUR_MODE_A).c_str(),
                ranked(operations, gpu, CUDNN_HEUR_MODE_B).c_str(),
                ranked(operations, gpu, CUDNN_HEUR_MODE_FALLBACK).c_str());
    std::fflush(stdout);
  }
  return 0;
}
