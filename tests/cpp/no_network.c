/* Stands before libc (LD_PRELOAD): writes every try to reach a network to the file that
 * NO_NETWORK_LOG names, one line each, and lets none succeed. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char* what) {
  const int saved = errno;
  const char* path = getenv("NO_NETWORK_LOG");
  const int file = path != NULL ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
  if (file >= 0) {
    const ssize_t written = write(file, what, strlen(what)) + write(file, "\n", 1);
    close(file);
    (void)written;
  }
  errno = saved;
}

int socket(int domain, int type, int protocol) {
  (void)type;
  (void)protocol;
  note(domain == AF_INET    ? "socket AF_INET"
       : domain == AF_INET6 ? "socket AF_INET6"
       : domain == AF_UNIX  ? "socket AF_UNIX"
                            : "socket of another family");
  errno = EACCES;
  return -1;
}

int getaddrinfo(const char* node, const char* service, const struct addrinfo* hints,
                struct addrinfo** result) {
  (void)service;
  (void)hints;
  (void)result;
  note("getaddrinfo");
  note(node != NULL ? node : "(none)");
  return EAI_FAIL;
}

struct hostent* gethostbyname(const char* name) {
  note("gethostbyname");
  note(name);
  h_errno = HOST_NOT_FOUND;
  return NULL;
}
