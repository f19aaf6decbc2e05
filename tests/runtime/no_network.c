// Loaded before the C library: refuses every socket of the internet family and every lookup of a
// name, and appends a line for each to the file that TFANET_NETWORK_LOG names.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char* what, const char* value) {
  char line[256];
  const int size = snprintf(line, sizeof line, "process %d: %s %s\n", getpid(), what, value);
  const int file = open(getenv("TFANET_NETWORK_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (file < 0 || write(file, line, (size_t)size) != size) abort();
  close(file);
}

int socket(int family, int type, int protocol) {
  if (family != AF_INET && family != AF_INET6) {
    return ((int (*)(int, int, int))dlsym(RTLD_NEXT, "socket"))(family, type, protocol);
  }
  note("socket", family == AF_INET ? "AF_INET" : "AF_INET6");
  errno = EAFNOSUPPORT;
  return -1;
}

int getaddrinfo(const char* name, const char* service, const struct addrinfo* hints,
                struct addrinfo** found) {
  (void)service, (void)hints, (void)found;
  note("getaddrinfo", name != NULL ? name : "");
  return EAI_FAIL;
}
