#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>

namespace isobit {
namespace {

constexpr uint64_t kMagic = 0x69736f6269740001;  // "isobit", layout 1
constexpr size_t kPage = 4096;

#ifdef MAP_POPULATE
constexpr int kPopulate = MAP_POPULATE;
#else
constexpr int kPopulate = 0;
#endif

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

size_t slots_begin(uint64_t degree) { return pages(sizeof(Header)) + degree * pages(sizeof(Post)); }

class Descriptor {
 public:
  Descriptor(const std::string& name, int flags) : number_(shm_open(name.c_str(), flags, 0600)) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }

 private:
  int number_;
};

int reserve(int descriptor, size_t bytes) {
#ifdef __linux__
  return posix_fallocate(descriptor, 0, static_cast<off_t>(bytes));
#else
  return ftruncate(descriptor, static_cast<off_t>(bytes)) ? errno : 0;
#endif
}

int fill_header(int descriptor, const Sizes& sizes) {
  void* memory = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) return errno;
  auto* header = new (memory) Header{};
  header->degree = sizes.degree;
  header->slot_bytes = sizes.slot_bytes;
  header->two_shot_bytes = sizes.two_shot_bytes;
  header->magic = kMagic;
  munmap(memory, kPage);
  return 0;
}

}  // namespace

static_assert(sizeof(Header) <= kPage, "the header is mapped alone when it is filled");

uint64_t bytes_needed(const Sizes& sizes) {
  return slots_begin(sizes.degree) + sizes.degree * 2 * pages(sizes.slot_bytes);
}

Created create_memory(const std::string& name, const Sizes& sizes) {
  Created created = {0, 0};
  const size_t bytes = bytes_needed(sizes);
  const Descriptor descriptor(name, O_CREAT | O_EXCL | O_RDWR);
  if (descriptor.number() < 0) return {errno, 0};
  struct statvfs space;
  if (fstatvfs(descriptor.number(), &space) == 0) {
    created.free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
    // Some systems report no size at all for shared memory; then only reserving can tell.
    if (space.f_blocks && created.free_bytes < bytes) created.error = ENOSPC;
  }
  if (!created.error) created.error = reserve(descriptor.number(), bytes);
  if (!created.error) created.error = fill_header(descriptor.number(), sizes);
  if (created.error) unlink_memory(name);
  return created;
}

void unlink_memory(const std::string& name) { shm_unlink(name.c_str()); }

int place_token(const std::string& name) {
  return Descriptor(name, O_CREAT | O_EXCL | O_RDWR).number() < 0 ? errno : 0;
}

bool sees_token(const std::string& name) { return Descriptor(name, O_RDWR).number() >= 0; }

Memory::Memory(const std::string& name, const Sizes& sizes)
    : sizes_(sizes), bytes_(bytes_needed(sizes)) {
  const Descriptor descriptor(name, O_RDWR);
  const auto refuse = [&](const std::string& why) {
    throw std::runtime_error("shared memory " + name + ": " + why);
  };
  if (descriptor.number() < 0) refuse(std::strerror(errno));
  struct stat status;
  if (fstat(descriptor.number(), &status)) refuse(std::strerror(errno));
  if (static_cast<size_t>(status.st_size) < bytes_)
    refuse("holds " + std::to_string(status.st_size) + " bytes, not " + std::to_string(bytes_));
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | kPopulate,
                      descriptor.number(), 0);
  if (memory == MAP_FAILED) refuse(std::strerror(errno));
  base_ = static_cast<char*>(memory);
  const Header& found = header();
  if (found.magic != kMagic || found.degree != sizes.degree ||
      found.slot_bytes != sizes.slot_bytes || found.two_shot_bytes != sizes.two_shot_bytes) {
    munmap(base_, bytes_);
    refuse("was made by another version of isobit or with other settings");
  }
}

Memory::~Memory() { munmap(base_, bytes_); }

Post& Memory::post(int64_t rank) {
  return *reinterpret_cast<Post*>(base_ + pages(sizeof(Header)) + rank * pages(sizeof(Post)));
}

char* Memory::slot(int64_t rank, uint64_t epoch) {
  const size_t index = static_cast<size_t>(rank) * 2 + (epoch & 1);
  return base_ + slots_begin(sizes_.degree) + index * pages(sizes_.slot_bytes);
}

}  // namespace isobit
