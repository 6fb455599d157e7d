// Keeps the memory of large freed tensors for new ones; memory.rs says why.

#include <ATen/ATen.h>
#include <c10/core/impl/alloc_cpu.h>

#include <deque>
#include <mutex>

namespace {

struct Block {
  void* start;
  size_t bytes;
};

class Cache {
 public:
  void* take(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
        if (block->bytes != bytes) continue;
        void* start = block->start;
        held_ -= bytes;
        blocks_.erase(block);
        return start;
      }
    }
    return c10::alloc_cpu(bytes);
  }

  void give_back(Block block) {
    std::lock_guard<std::mutex> lock(mutex_);
    held_ += block.bytes;
    blocks_.push_back(block);
    shrink();
  }

  void set_limit(size_t limit) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = limit;
    shrink();
  }

 private:
  // Frees the blocks that were given back first.
  void shrink() {
    while (held_ > limit_) {
      const Block block = blocks_.front();
      blocks_.pop_front();
      held_ -= block.bytes;
      c10::free_cpu(block.start);
    }
  }

  std::mutex mutex_;
  std::deque<Block> blocks_;
  size_t held_ = 0;
  size_t limit_ = size_t{256} << 20;
};

// Never destroyed, since tensors may outlive everything static.
Cache& cache() {
  static Cache* instance = new Cache;
  return *instance;
}

}  // namespace

extern "C" {

// A new tensor of the kind of `like` with these sizes and strides, which leave neither gaps nor overlaps. Null where
// the system has no memory.
at::Tensor* tch_losses_empty(const at::Tensor* like, const int64_t* sizes, const int64_t* strides, size_t dims) {
  try {
    const at::IntArrayRef size(sizes, dims);
    const size_t bytes = c10::multiply_integers(size) * like->element_size();
    const Block block{cache().take(bytes), bytes};
    auto give_back = [block](void*) { cache().give_back(block); };
    return new at::Tensor(at::from_blob(block.start, size, {strides, dims}, give_back, like->options()));
  } catch (const std::exception&) {
    return nullptr;
  }
}

void tch_losses_set_cache_limit(size_t bytes) {
  cache().set_limit(bytes);
}
}
