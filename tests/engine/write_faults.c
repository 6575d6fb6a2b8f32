// Preloaded into a program, this lets what it writes into one folder end at a chosen operation: the
// process is killed there, or that operation and all later ones fail, as on a full disk. Operations are
// write, fsync, rename and truncate. Their names are listed in FOLDER.trace.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long count, first;
static int fault;  // an errno; 0 kills the process

// From now on, in this process, operation `at` in `path` and those behind it fail; -1 only lists them.
void arm_write_faults(const char *path, long at, int error) {
  snprintf(folder, sizeof folder, "%s", path);
  count = 0, first = at, fault = error;
}

static const char *name_in_folder(const char *path) {
  const size_t length = strlen(folder);
  if (!length || strncmp(path, folder, length)) return NULL;
  if (!path[length]) return ".";
  return path[length] == '/' ? path + length + 1 : NULL;
}

static const char *name_of(int fd) {
  static __thread char path[PATH_MAX];
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return NULL;
  path[length] = 0;
  return name_in_folder(path);
}

// Whether the operation is to fail. Files that a training appends to for people to read are left alone
// where it is to be killed, as nothing depends on them.
static int fails(const char *operation, const char *name) {
  if (!name || !strncmp(name, "events.", 7) || !strcmp(name, ".lock")) return 0;
  if (!strcmp(name, "log.txt")) return fault && first >= 0 && count > first;
  char file[PATH_MAX + 8], line[PATH_MAX + 32];
  snprintf(file, sizeof file, "%s.trace", folder);
  const int length = snprintf(line, sizeof line, "%s %s\n", operation, name);
  const int fd = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT, 0644);
  syscall(SYS_write, fd, line, length);
  syscall(SYS_close, fd);
  return first >= 0 && count++ >= first;
}

static int end(void) {
  if (!fault) {
    kill(getpid(), SIGKILL);
    pause();
  }
  errno = fault;
  return -1;
}

#define ORIGINAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  if (!fails("write", name_of(fd))) return ORIGINAL(write)(fd, data, size);
  if (!fault) ORIGINAL(write)(fd, data, size / 2);
  return end();
}

int fsync(int fd) { return fails("fsync", name_of(fd)) ? end() : ORIGINAL(fsync)(fd); }

int rename(const char *from, const char *to) {
  char path[PATH_MAX];
  const char *name = realpath(from, path) ? name_in_folder(path) : NULL;
  return fails("rename", name) ? end() : ORIGINAL(rename)(from, to);
}

int ftruncate64(int fd, off64_t size) {
  return fails("truncate", name_of(fd)) ? end() : ORIGINAL(ftruncate64)(fd, size);
}
