// SPDX-License-Identifier: MIT
#include "core/model/synthetic.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <tbb/enumerable_thread_specific.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "core/api/error.hpp"
#include "core/api/output_file.hpp"
#include "core/arch/architecture.hpp"
#include "core/gguf/gguf_header.hpp"
#include "core/model/synthetic_weights.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t chunk_bytes = std::size_t{1} << 20;  // made and written at once
constexpr std::size_t page_bytes = 4096;                   // what direct writing needs addresses and sizes to be

// A preset and what it is a model of.
struct Preset : SyntheticPreset {
  const Architecture* architecture;
};

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = [] {
    std::vector<Preset> presets;
    for (const Architecture* a : architectures())
      for (const SyntheticPreset& preset : a->presets) presets.push_back({preset, a});
    return presets;
  }();
  return all;
}

// `file_type` is llama.cpp's number of the mix (enum llama_ftype in include/llama.h).
struct Quant {
  std::string_view name;
  std::uint32_t file_type;
  BlockType type;
  bool mixed;
};
constexpr Quant quants[] = {
    {"f32", 0, BlockType::f32, false},        {"f16", 1, BlockType::f16, false},
    {"bf16", 32, BlockType::bf16, false},     {"q4_0", 2, BlockType::q4_0, false},
    {"q4_1", 3, BlockType::q4_1, false},      {"q5_0", 8, BlockType::q5_0, false},
    {"q5_1", 9, BlockType::q5_1, false},      {"q8_0", 7, BlockType::q8_0, false},
    {"q2_k", 10, BlockType::q2_k, false},     {"q3_k", 11, BlockType::q3_k, false},
    {"q4_k", 14, BlockType::q4_k, false},     {"q5_k", 16, BlockType::q5_k, false},
    {"q6_k", 18, BlockType::q6_k, false},     {"iq4_nl", 25, BlockType::iq4_nl, false},
    {"iq4_xs", 30, BlockType::iq4_xs, false}, {"mxfp4", 38, BlockType::mxfp4, false},
    {"q4_k_m", 15, BlockType::q4_k, true},    {"q5_k_m", 17, BlockType::q5_k, true},
};

template <class Table>
auto& find_named(const Table& table, std::string_view what, std::string_view name) {
  std::string known;
  for (const auto& row : table) {
    if (row.name == name) return row;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", row.name);
  }
  throw Error(ErrorKind::usage, fmt::format("there is no synthetic {} '{}'; there are: {}", what, name, known));
}

// Source: llama.cpp src/llama-quant.cpp (use_more_bits).
bool more_bits(int layer, int layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

bool is_always_f32(TensorKind kind) {
  return kind == TensorKind::norm || kind == TensorKind::router || kind == TensorKind::gate || kind == TensorKind::bias;
}

BlockType type_of(const Quant& quant, const TensorSpec& spec, int layers) {
  if (is_always_f32(spec.kind)) return BlockType::f32;
  const bool is_finer = spec.kind == TensorKind::head || (spec.more_bits && more_bits(spec.layer, layers));
  const BlockType type = quant.mixed && is_finer ? BlockType::q6_k : quant.type;
  return spec.cols % info(type).elements == 0 ? type : BlockType::q8_0;  // as llama.cpp does where blocks do not fit
}

// A whole file: its header, where its tensors stand, and any stretch of its bytes.
class Layout {
 public:
  explicit Layout(const SyntheticSpec& spec)
      : preset_(find_named(presets(), "model", spec.preset)),
        quant_(find_named(quants, "type", spec.quant)),
        config_(spec.sizes.value_or(preset_.config)),
        seed_(spec.seed),
        router_scale_(spec.router_scale) {
    if (spec.layers < 0 || spec.layers > most_synthetic_layers)
      throw Error(ErrorKind::usage,
                  fmt::format("a synthetic model has 1 to {} layers, found {}", most_synthetic_layers, spec.layers));
    if (!(spec.router_scale >= 0 && spec.router_scale <= largest_router_scale))
      throw Error(ErrorKind::usage, fmt::format("router_scale is a number from 0 to {}, found {}", largest_router_scale,
                                                spec.router_scale));
    if (spec.layers > 0) config_.layers = spec.layers;
    const Architecture& architecture = *preset_.architecture;
    config_.stages = architecture.stages;
    config_.caches = architecture.caches;
    add(architecture.first_tensors(config_));
    for (int l = 0; l < config_.layers; ++l) add(architecture.layer_tensors(config_, l));
    add(architecture.last_tensors(config_));
    write_header();
  }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;

  const ModelConfig& config() const { return config_; }
  std::uint64_t bytes() const { return bytes_; }

  // Bytes first, first + 1, ... of the file, as many as `out` holds.
  void make(std::uint64_t first, std::span<std::byte> out) const {
    std::fill(out.begin(), out.end(), std::byte{0});  // between tensors
    if (first < header_.size()) {
      const std::size_t count = std::min<std::size_t>(out.size(), header_.size() - first);
      std::memcpy(out.data(), header_.data() + first, count);
    }
    const auto starts_after = [](std::uint64_t byte, const Placed& tensor) { return byte < tensor.offset; };
    auto tensor = std::upper_bound(tensors_.begin(), tensors_.end(), first, starts_after);
    if (tensor != tensors_.begin()) --tensor;
    for (; tensor != tensors_.end() && tensor->offset < first + out.size(); ++tensor) make_part(*tensor, first, out);
  }

 private:
  struct Placed {
    SyntheticTensor tensor;
    std::uint64_t offset;
  };

  void add(const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) {
      const float scale = spec.kind == TensorKind::router ? static_cast<float>(router_scale_) : 1.0f;
      tensors_.push_back({{spec, type_of(quant_, spec, config_.layers), scale}, 0});
    }
  }

  // What of a tensor falls into the bytes from `first` on. Rows that lie across an end are made beside and cut.
  void make_part(const Placed& placed, std::uint64_t first, std::span<std::byte> out) const {
    const SyntheticTensor& tensor = placed.tensor;
    const std::uint64_t row = tensor.row_bytes(), all = row * static_cast<std::uint64_t>(tensor.all_rows());
    const std::uint64_t from = first > placed.offset ? first - placed.offset : 0;
    const std::uint64_t to = std::min(all, first + out.size() - placed.offset);
    std::vector<std::byte> beside;
    for (std::uint64_t at = from; at < to;) {
      std::byte* target = out.data() + (placed.offset + at - first);
      const std::uint64_t r = at / row, whole = (to - at) / row;
      if (at % row == 0 && whole > 0) {
        make_rows(tensor, seed_, static_cast<std::int64_t>(r), static_cast<std::int64_t>(r + whole), target);
        at += whole * row;
        continue;
      }
      beside.resize(row);
      make_rows(tensor, seed_, static_cast<std::int64_t>(r), static_cast<std::int64_t>(r + 1), beside.data());
      const std::uint64_t end = std::min(to, (r + 1) * row);
      std::memcpy(target, beside.data() + at % row, end - at);
      at = end;
    }
  }

  void write_header() {
    GgufHeader header;
    header.add("general.architecture", preset_.architecture->name);
    header.add("general.type", "model");
    header.add("general.name", preset_.title);
    header.add("general.file_type", quant_.file_type);
    header.add("general.quantization_version", std::uint32_t{2});
    preset_.architecture->add_config(header, config_, preset_.dense_width);
    header.add("tokenizer.ggml.model", "none");
    header.add("moe_diag.synthetic.seed", seed_);
    if (router_scale_ != 1) header.add("moe_diag.synthetic.router_scale", static_cast<float>(router_scale_));
    for (Placed& placed : tensors_) {
      placed.offset = header.data_bytes();
      header.add_tensor(placed.tensor.spec.name(), placed.tensor.type, placed.tensor.spec.dims());
    }
    header_ = header.bytes();
    for (Placed& placed : tensors_) placed.offset += header_.size();
    bytes_ = header_.size() + header.data_bytes();
  }

  const Preset& preset_;
  const Quant& quant_;
  ModelConfig config_;
  std::uint64_t seed_;
  double router_scale_;
  std::vector<Placed> tensors_;  // by offset
  std::vector<std::byte> header_;
  std::uint64_t bytes_ = 0;
};

std::size_t chunks_of(const Layout& layout) { return (layout.bytes() + chunk_bytes - 1) / chunk_bytes; }

// Runs `work` on exactly that many threads, more than there are cores if asked to.
template <class Work>
void run_on(int threads, const Work& work) {
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const int used = threads > 0 ? threads : cores;
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism,
                                  static_cast<std::size_t>(std::max(used, cores)));
  tbb::task_arena(used).execute(work);
}

}  // namespace

const Architecture& synthetic_architecture(std::string_view preset) {
  return *find_named(presets(), "model", preset).architecture;
}

std::vector<std::string_view> synthetic_presets() {
  std::vector<std::string_view> names;
  for (const Preset& preset : presets()) names.push_back(preset.name);
  return names;
}

std::vector<std::string_view> synthetic_quants() {
  std::vector<std::string_view> names;
  for (const Quant& quant : quants) names.push_back(quant.name);
  return names;
}

std::string to_string(const SyntheticSpec& spec) {
  return fmt::format("synthetic: {}{}, {} layers, {}, seed {}{}", spec.preset, spec.sizes ? " of other sizes" : "",
                     Layout(spec).config().layers, spec.quant, spec.seed,
                     spec.router_scale == 1 ? "" : fmt::format(", router weights times {}", spec.router_scale));
}

std::uint64_t synthetic_bytes(const SyntheticSpec& spec) { return Layout(spec).bytes(); }

SyntheticImage make_synthetic(const SyntheticSpec& spec, int threads) {
  const Layout layout(spec);
  SyntheticImage image;
  try {
    image = SyntheticImage(layout.bytes());
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::environment, fmt::format("{}: there is no memory for its {} bytes; write it to a file with "
                                                    "'moe-diag synth' and use that",
                                                    to_string(spec), layout.bytes()));
  }
  const std::span<std::byte> out = image.bytes();
  run_on(threads, [&] {
    tbb::parallel_for(std::size_t{0}, chunks_of(layout), [&](std::size_t i) {
      const std::size_t first = i * chunk_bytes;
      layout.make(first, out.subspan(first, std::min(chunk_bytes, out.size() - first)));
    });
  });
  return image;
}

namespace {

// A file under a temporary name that disappears unless it is kept.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path), temporary_(path + ".partial-XXXXXX") {
    fd_ = ::mkostemp(temporary_.data(), O_CLOEXEC);
    if (fd_ < 0) fail("cannot be created in this folder");
    const mode_t mask = ::umask(0);
    ::umask(mask);
    ::fchmod(fd_, 0666 & ~mask);
    // Past the page cache: filling that takes longer than the disk does, and pushes out what others have there.
    set_direct(true);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (fd_ >= 0) ::close(fd_);
    if (!kept_) ::unlink(temporary_.c_str());
  }

  // Asks for the space first, so that a full disk is known before the work. Not all filesystems can be asked.
  void reserve(std::uint64_t bytes) {
    std::error_code ignored;
    const auto space = std::filesystem::space(temporary_, ignored);
    space_ = fmt::format("; it takes {} bytes, {} are free", bytes, space.available);
    if (::fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) != 0 && (errno == ENOSPC || errno == EFBIG))
      fail("cannot be written");
  }

  // Writes at a place, from any thread. Addresses and sizes are multiples of a page.
  void write(std::uint64_t at, std::span<const std::byte> data) {
    while (!data.empty()) {
      const bool direct = direct_;
      const ssize_t n = ::pwrite(fd_, data.data(), data.size(), static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EINVAL && direct) {  // this filesystem, or the end of a disk, cannot do without the cache
        set_direct(false);
        continue;
      }
      if (n == 0) errno = ENOSPC;
      if (n <= 0) fail("cannot be written");
      at += static_cast<std::uint64_t>(n);
      data = data.subspan(static_cast<std::size_t>(n));
    }
  }

  void keep(std::uint64_t bytes) {
    if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0 || ::fdatasync(fd_) != 0) fail("cannot be written");
    if (::close(std::exchange(fd_, -1)) != 0) fail("cannot be written");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be renamed to from its temporary name");
    kept_ = true;
  }

 private:
  void set_direct(bool direct) {
    const int flags = ::fcntl(fd_, F_GETFL) & ~O_DIRECT;
    direct_ = ::fcntl(fd_, F_SETFL, direct ? flags | O_DIRECT : flags) == 0 && direct;
  }

  [[noreturn]] void fail(std::string_view what) const {
    const int error = errno;
    const bool full = error == ENOSPC || error == EFBIG || error == EDQUOT;
    throw Error(ErrorKind::environment,
                fmt::format("{}: {}: {}{}", path_, what, std::strerror(error), full ? space_ : ""));
  }

  std::string path_, temporary_, space_;
  int fd_ = -1;
  std::atomic<bool> direct_ = false;
  bool kept_ = false;
};

// Memory for one chunk at an address that direct writing takes.
class PageBuffer {
 public:
  std::span<std::byte> bytes() { return {data_.get(), chunk_bytes}; }

 private:
  struct Free {
    void operator()(std::byte* data) const { ::operator delete[](data, std::align_val_t{page_bytes}); }
  };
  std::unique_ptr<std::byte[], Free> data_{new (std::align_val_t{page_bytes}) std::byte[chunk_bytes]};
};

// A stream is written in order, so the whole file is made first.
void write_stream(const SyntheticSpec& spec, const OutputPlace& place, const SyntheticWriting& writing) {
  const SyntheticImage image = make_synthetic(spec, writing.threads);
  OutputFile stream(place);
  for (std::size_t at = 0; at < image.bytes().size(); at += chunk_bytes) {
    const std::size_t bytes = std::min(chunk_bytes, image.bytes().size() - at);
    stream.write(image.bytes().data() + at, bytes);
    if (writing.progress) writing.progress(at + bytes, image.bytes().size());
  }
  stream.close();
}

}  // namespace

void write_synthetic(const SyntheticSpec& spec, const std::string& path, const SyntheticWriting& writing) {
  const Layout layout(spec);
  const OutputPlace place = check_output(path, writing.overwrite, "OUT");
  if (place.kind == OutputPlace::Kind::stream) return write_stream(spec, place, writing);
  TemporaryFile file(place.target);
  file.reserve(layout.bytes());
  const std::size_t chunks = chunks_of(layout);
  std::mutex progress_mutex;
  std::uint64_t done = 0;
  run_on(writing.threads, [&] {
    tbb::enumerable_thread_specific<PageBuffer> buffers;
    tbb::parallel_for(std::size_t{0}, chunks, [&](std::size_t i) {
      const std::span<std::byte> buffer = buffers.local().bytes();
      layout.make(i * chunk_bytes, buffer);
      file.write(i * chunk_bytes, buffer);
      const std::lock_guard lock(progress_mutex);
      done += std::min<std::uint64_t>(chunk_bytes, layout.bytes() - i * chunk_bytes);
      if (writing.progress) writing.progress(done, layout.bytes());
    });
  });
  file.keep(layout.bytes());
}

}  // namespace moe_diag
