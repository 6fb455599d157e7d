// Gives Rust closures a place in libtorch's autograd graph; mod.rs holds the Rust side and says why.
//
// A tensor crosses the boundary as a pointer to a heap-allocated at::Tensor, as in tch. Nothing unwinds across it: a
// C++ exception becomes an error text for Rust, an error of Rust becomes a C++ exception.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Calls the Rust closure, which owns the tensors that it is given. A null pointer stands for an undefined gradient.
// Returns false on failure, and has then set the text.
using Backward = bool (*)(
    const void* closure,
    Tensor** grads,
    size_t grad_count,
    Tensor** saved,
    size_t saved_count,
    Tensor** results,
    size_t result_count,
    std::string* error);
using Drop = void (*)(void* closure);

// A tensor of the same values whose memory holds them. libtorch hands zeros without memory through the graph (the
// second derivative of |x| is such a tensor), and views that are negated or conjugated lazily.
Tensor plain(const Tensor& tensor) {
  if (!tensor.defined() || tensor.layout() != at::kStrided) return tensor;
  if (tensor._is_zerotensor()) return tensor.clone();
  return tensor.resolve_conj().resolve_neg();
}

Tensor* to_heap(const Tensor& tensor) {
  return tensor.defined() ? new Tensor(tensor) : nullptr;
}

// The node of the gradients of a function that can be differentiated once. It has the edges of a derivative, but its
// backward is an error.
struct OnceNode : Node {
  std::string name() const override {
    return "RustFunctionDifferentiatedOnce";
  }

  variable_list apply(variable_list&&) override {
    TORCH_CHECK(
        false, "the gradient of a function that can be differentiated once was differentiated (once_differentiable)");
  }
};

struct RustNode : Node {
  std::shared_ptr<void> closure;
  // Held while the closure runs, so that one thread at a time is in it. Recursive, because the closure may run a
  // backward pass that comes back to it on the same thread.
  std::recursive_mutex entered;
  Backward backward = nullptr;
  std::vector<SavedVariable> saved;
  size_t input_count = 0;
  bool once = false;
  bool released = false;

  std::string name() const override {
    return "RustFunction";
  }

  variable_list apply(variable_list&& grads) override;

  variable_list call(const variable_list& grads) {
    std::vector<Tensor*> grad_pointers;
    std::vector<Tensor*> saved_pointers;
    std::shared_ptr<void> held;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      TORCH_CHECK(!released, torch::autograd::ERR_BACKWARD_TWICE);
      held = closure;
      // Unpacking throws where a saved tensor was changed in place, so it comes before tensors are allocated that would
      // leak.
      variable_list unpacked;
      for (const auto& variable : saved) unpacked.push_back(variable.unpack());
      variable_list plain_grads;
      for (const auto& grad : grads) plain_grads.push_back(plain(grad));
      for (const auto& tensor : unpacked) saved_pointers.push_back(new Tensor(tensor));
      for (const auto& grad : plain_grads) grad_pointers.push_back(to_heap(grad));
    }
    // Not under the lock of the node: see `entered`.
    std::lock_guard<std::recursive_mutex> lock(entered);
    std::vector<Tensor*> result_pointers(input_count, nullptr);
    std::string error;
    const bool done = backward(
        held.get(),
        grad_pointers.data(),
        grad_pointers.size(),
        saved_pointers.data(),
        saved_pointers.size(),
        result_pointers.data(),
        result_pointers.size(),
        &error);
    variable_list results(input_count);
    for (size_t i = 0; i < input_count; i++) {
      std::unique_ptr<Tensor> result(result_pointers[i]);
      if (result) results[i] = plain(*result);
    }
    TORCH_CHECK(done, error);
    return results;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
    saved.clear();
    closure.reset();
    released = true;
  }
};

// Releases of libtorch differ in what owns a node.
template <typename Pointer>
struct Owner;
template <>
struct Owner<std::shared_ptr<Node>> {
  template <typename T>
  static std::pair<T*, std::shared_ptr<Node>> make() {
    T* node = new T();
    // Found by argument-dependent lookup: releases that own nodes in another way have no `deleteNode`.
    auto release = [](auto* released) { deleteNode(released); };
    return {node, std::shared_ptr<Node>(static_cast<Node*>(node), release)};
  }
};
template <>
struct Owner<c10::intrusive_ptr<Node>> {
  template <typename T>
  static std::pair<T*, c10::intrusive_ptr<Node>> make() {
    auto owner = c10::make_intrusive<T>();
    T* node = owner.get();
    return {node, std::move(owner)};
  }
};
using NodeOwner = decltype(torch::autograd::Edge::function);

variable_list RustNode::apply(variable_list&& grads) {
  const bool create_graph = at::GradMode::is_enabled();
  if (!once || !create_graph) return call(grads);
  variable_list results;
  {
    // The closure need not ask whether a graph is built: gradients are off, so its results have none.
    at::AutoGradMode off(false);
    results = call(grads);
  }
  auto [node, owner] = Owner<NodeOwner>::make<OnceNode>();
  torch::autograd::edge_list edges = next_edges();
  for (auto& edge : torch::autograd::collect_next_edges(grads)) edges.push_back(std::move(edge));
  node->set_next_edges(std::move(edges));
  for (auto& result : results) {
    if (!result.defined()) continue;
    result = result.detach();
    torch::autograd::create_gradient_edge(result, owner);
  }
  return results;
}

}  // namespace

extern "C" {

void tch_losses_set_text(std::string* text, const char* bytes, size_t length) {
  text->assign(bytes, length);
}

bool tch_losses_grad_enabled() {
  return at::GradMode::is_enabled();
}

// Whether the backward pass that runs on this thread keeps its graph. Only to be called within one.
bool tch_losses_keep_graph() {
  return torch::autograd::get_current_graph_task_keep_graph();
}

// Makes `outputs` the results of a node whose backward is `closure`. Takes the closure over in every case. Returns
// false on failure, and has then handed the text to `report`.
bool tch_losses_attach(
    Tensor** outputs,
    size_t output_count,
    Tensor* const* inputs,
    size_t input_count,
    Tensor* const* saved,
    size_t saved_count,
    bool once,
    void* closure,
    Backward backward,
    Drop drop,
    void (*report)(void* context, const char* bytes, size_t length),
    void* report_context) {
  std::shared_ptr<void> held(closure, drop);
  try {
    variable_list sources;
    for (size_t i = 0; i < input_count; i++) sources.push_back(*inputs[i]);
    auto [node, owner] = Owner<NodeOwner>::make<RustNode>();
    node->closure = std::move(held);
    node->backward = backward;
    node->input_count = input_count;
    node->once = once;
    for (size_t i = 0; i < saved_count; i++) node->saved.emplace_back(*saved[i], /*is_output=*/false);
    node->set_next_edges(torch::autograd::collect_next_edges(sources));
    for (size_t i = 0; i < output_count; i++) torch::autograd::create_gradient_edge(*outputs[i], owner);
    return true;
  } catch (const std::exception& error) {
    const std::string text = error.what();
    report(report_context, text.data(), text.size());
    return false;
  }
}
}
