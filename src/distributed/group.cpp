// Gives Rust the groups of processes of libtorch's c10d, as torch.distributed has them; ffi.rs holds the Rust side.
//
// A tensor crosses the boundary as a pointer to a heap-allocated at::Tensor, as in tch. Nothing unwinds across it: each
// function returns false on failure, and has then handed the text to `report`.
//
// The header of Gloo's group names types of Gloo, which libtorch does not ship; gloo_headers declares them.

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#ifdef TCH_LOSSES_NCCL
#include "nccl.hpp"
#endif

#include <chrono>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using Millis = std::chrono::milliseconds;
using Report = void (*)(void* context, const char* bytes, size_t length);

struct Group {
  // Where ranks leave signs for each other.
  c10::intrusive_ptr<c10d::Store> signs;
  // Where this group alone meets.
  c10::intrusive_ptr<c10d::Store> own;
  int rank = 0;
  int world = 0;
  Millis timeout{};
  // For tensors on the CPU. Null once the group is closed.
  c10::intrusive_ptr<c10d::Backend> cpu;
  // For tensors on GPUs, from the first one on.
  c10::intrusive_ptr<c10d::Backend> cuda;
};

template <typename F>
bool guarded(Report report, void* context, F call) {
  std::string text;
  try {
    call();
    return true;
  } catch (const c10::Error& error) {
    text = error.what_without_backtrace();
  } catch (const std::exception& error) {
    text = error.what();
  } catch (...) {
    text = "an unknown exception of C++";
  }
  report(context, text.data(), text.size());
  return false;
}

// As torch.distributed chooses them. libtorch's Options::create_default does the same, but only from 2.10 on.
c10::intrusive_ptr<c10d::ProcessGroupGloo::Options> options(Millis timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  const bool lazy = c10d::getDefaultGlooLazyInit();
  const char* names = std::getenv("GLOO_SOCKET_IFNAME");
  std::stringstream interfaces(names ? names : "");
  for (std::string name; std::getline(interfaces, name, ',');) {
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name, lazy));
  }
  if (options->devices.empty()) options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice(lazy));
  options->threads = 2 * options->devices.size();
  return options;
}

// Null is a group that was given up.
Group& open(Group* group) {
  TORCH_CHECK(group, "the group is closed");
  return *group;
}

// What sends this tensor.
c10d::Backend& backend(Group* group, const Tensor& tensor) {
  TORCH_CHECK(open(group).cpu, "the group is closed");
  if (tensor.is_cpu()) return *group->cpu;
#ifdef TCH_LOSSES_NCCL
  if (!group->cuda) {
    auto store = c10::make_intrusive<c10d::PrefixStore>("cuda/", group->own);
    group->cuda = tch_losses::nccl(store, group->rank, group->world, group->timeout);
  }
#endif
  TORCH_CHECK(group->cuda, "the feature nccl is off");
  return *group->cuda;
}

}  // namespace

extern "C" {

// Connects to the store, which is the first half of a group.
bool tch_losses_group_connect(
    const char* host,
    uint16_t port,
    bool serves,
    int world,
    int64_t timeout_ms,
    Group** group,
    Report report,
    void* context) {
  return guarded(report, context, [&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.numWorkers = world;
    // Ranks that are missing are found by the second half, which can name them.
    options.waitWorkers = false;
    options.timeout = Millis(timeout_ms);
    options.multiTenant = true;
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    // That of torch.distributed.init_process_group.
    *group = new Group{c10::make_intrusive<c10d::PrefixStore>("default_pg", store)};
  });
}

// Connects to all other ranks, which is the second half.
bool tch_losses_group_join(
    Group* group,
    const char* name,
    int rank,
    int world,
    int64_t timeout_ms,
    Report report,
    void* context) {
  return guarded(report, context, [&] {
    open(group).rank = rank;
    group->own = c10::make_intrusive<c10d::PrefixStore>(std::string(name) + "/", group->signs);
    group->world = world;
    group->timeout = Millis(timeout_ms);
    auto store = c10::make_intrusive<c10d::PrefixStore>("cpu/", group->own);
    group->cpu = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world, options(group->timeout));
    group->cpu->setSequenceNumberForGroup();
    // Less may have been left for the beginning.
    group->signs->setTimeout(group->timeout);
  });
}

// Closes the connections to the other ranks, which then see that this one has left.
bool tch_losses_group_close(Group* group, Report report, void* context) {
  return guarded(report, context, [&] {
    open(group).cpu.reset();
    // What another rank will not answer to would keep the GPU busy for ever.
    if (group->cuda) group->cuda->abort();
    group->cuda.reset();
  });
}

void tch_losses_group_drop(Group* group) {
  try {
    delete group;
  } catch (...) {
    // A destructor that fails has nobody to tell.
  }
}

bool tch_losses_group_sign(Group* group, const char* key, Report report, void* context) {
  return guarded(report, context, [&] { open(group).signs->set(key, std::vector<uint8_t>{1}); });
}

// Whether there is such a sign. Does not wait for one.
bool tch_losses_group_has_sign(Group* group, const char* key, bool* there, Report report, void* context) {
  return guarded(report, context, [&] { *there = open(group).signs->check({key}); });
}

// Writes the value where there is none at the key yet. Reports the value that is there.
bool tch_losses_group_claim(
    Group* group,
    const char* key,
    const char* value,
    Report take,
    void* there,
    Report report,
    void* context) {
  return guarded(report, context, [&] {
    const std::string text = open(group).signs->compareSet(key, std::string(), std::string(value));
    take(there, text.data(), text.size());
  });
}

// `operation` is a number of c10d::ReduceOp.
bool tch_losses_group_all_reduce(Group* group, Tensor* tensor, int operation, Report report, void* context) {
  return guarded(report, context, [&] {
    std::vector<Tensor> tensors{*tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp(static_cast<c10d::ReduceOp::RedOpType>(operation));
    backend(group, *tensor).allreduce(tensors, options)->wait();
  });
}

bool tch_losses_group_all_gather(
    Group* group,
    Tensor* const* outputs,
    size_t count,
    Tensor* input,
    Report report,
    void* context) {
  return guarded(report, context, [&] {
    std::vector<std::vector<Tensor>> gathered(1);
    for (size_t i = 0; i < count; i++) gathered[0].push_back(*outputs[i]);
    std::vector<Tensor> inputs{*input};
    backend(group, *input).allgather(gathered, inputs)->wait();
  });
}

bool tch_losses_group_broadcast(Group* group, Tensor* tensor, int64_t root, Report report, void* context) {
  return guarded(report, context, [&] {
    std::vector<Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    backend(group, *tensor).broadcast(tensors, options)->wait();
  });
}

// Sends a tensor to one rank while it receives another one. Null is a tensor of nothing.
bool tch_losses_group_exchange(
    Group* group,
    Tensor* own,
    int to,
    Tensor* other,
    int from,
    Report report,
    void* context) {
  return guarded(report, context, [&] {
    if (!own && !other) return;
    c10d::Backend& backend = ::backend(group, own ? *own : *other);
    // NCCL would otherwise finish the one before it begins the other, and so wait for ever.
    const bool together = backend.supportsCoalescing();
    if (together) backend.startCoalescing();
    std::vector<c10::intrusive_ptr<c10d::Work>> works;
    if (other) {
      std::vector<Tensor> received{*other};
      works.push_back(backend.recv(received, from, 0));
    }
    if (own) {
      std::vector<Tensor> sent{*own};
      works.push_back(backend.send(sent, to, 0));
    }
    if (together) works = {backend.endCoalescing()};
    for (const auto& work : works) work->wait();
  });
}
}
