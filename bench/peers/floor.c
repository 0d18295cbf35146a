/* The least that a server in user space can do for an event: one send() per subscriber, and nothing else.
 *
 *   floor PORT RATE BURST CHANNELS EACH
 *
 * Sends RATE events a second and channel to everybody; with RATE 0 BURST events joined in one send(), once a turn, as
 * fast as it can. With EACH 1 every subscriber gets events of its own. Requests are not read, only answered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../mark.h"

#define SUBSCRIBERS_MAX 65536
#define BURST_MAX 64

static int subscribers[SUBSCRIBERS_MAX], count, poller;
static unsigned long number = 1000000;

static const char HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\ntransfer-encoding: chunked\r\n\r\n"
    "6\r\n: hi\n\n\r\n";

/* A chunk of `burst` events, as long as the product's: they have an id and a name too. */
static size_t make_chunk(char *out, int burst, int channel) {
  static char body[BURST_MAX * (EVENT_MAX + 64)];
  size_t size = 0;
  for (int i = 0; i < burst; i++) {
    size += (size_t)sprintf(body + size, "id: AbCd.%lu\nevent: mark\ndata: ", number);
    size += (size_t)put_event(body + size, number++, channel);
    body[size++] = '\n';
    body[size++] = '\n';
  }
  int head = sprintf(out, "%zx\r\n", size);
  memcpy(out + head, body, size);
  memcpy(out + (size_t)head + size, "\r\n", 2);
  return (size_t)head + size + 2;
}

static void send_all(int fd, const char *bytes, size_t size) {
  while (size) {
    ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      bytes += sent;
      size -= (size_t)sent;
    } else if (sent < 0 && errno == EAGAIN) {
      struct pollfd wait = {fd, POLLOUT, 0};
      poll(&wait, 1, 1000);
    } else {
      return; /* it is gone: its end is read as well */
    }
  }
}

static void emit(int burst, int channel, bool each) {
  static char chunk[BURST_MAX * (EVENT_MAX + 64) + 32];
  size_t size = 0;
  for (int i = 0; i < count; i++) {
    if (each || !i) size = make_chunk(chunk, burst, channel);
    send_all(subscribers[i], chunk, size);
  }
}

static void accept_some(int listening) {
  for (int fd, one = 1; (fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
  }
}

static void read_from(int fd) {
  char request[8192];
  if (recv(fd, request, sizeof request, 0) > 0) {
    send_all(fd, HEAD, sizeof HEAD - 1);
    if (count < SUBSCRIBERS_MAX) subscribers[count++] = fd;
    return;
  }
  for (int i = 0; i < count; i++)
    if (subscribers[i] == fd) subscribers[i--] = subscribers[--count];
  close(fd);
}

static int listen_on(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) {
    perror("floor");
    exit(1);
  }
  return fd;
}

int main(int words, char **word) {
  if (words != 6) return 2;
  double rate = atof(word[2]);
  int burst = atoi(word[3]), channels = atoi(word[4]), turn = 0;
  bool each = atoi(word[5]);
  if (burst < 1 || burst > BURST_MAX || channels < 1) return 2;
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  int listening = listen_on(atoi(word[1]));
  poller = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, events[256];
  epoll_ctl(poller, EPOLL_CTL_ADD, listening, &event);
  uint64_t pause = rate > 0 ? (uint64_t)(1e9 / (rate * channels)) : 0, next = now_ns();
  for (;;) {
    if (now_ns() >= next) { /* with channels, their events come evenly spread, and not all at once */
      emit(burst, turn++ % channels, each);
      next = rate > 0 ? next + pause : now_ns();
    }
    uint64_t now = now_ns();
    int ms = next > now ? (int)((next - now + 999999) / 1000000) : 0; /* rounded up: no spinning */
    int some = epoll_wait(poller, events, 256, rate > 0 || count ? ms : 100);
    for (int i = 0; i < some; i++) {
      if (events[i].data.fd == listening)
        accept_some(listening);
      else
        read_from(events[i].data.fd);
    }
  }
}
