/* A load client for Server-Sent Events: one thread, epoll, thousands of connections. Prints one JSON object.
 *
 * It connects its clients, waits, measures for a while, and reports what they received, how old each event was when it
 * came (mark.h), and what the server's processes used meanwhile (accounting.h). `bench/load.py` is what starts it.
 *
 *   load --port P --path /sse --clients N [more of `options` below]
 *
 * Groups of clients, in the order in which they come: `warm` ones come and go before anything is measured, because a
 * server's first connections pay for what it makes only once; `stalled` ones never read; `live` ones are what is
 * measured. With --storm, `plain` ones connect without a cursor, which is what connecting costs; when they have been
 * served for a while, which is what so many cost, they go again. Then `storm` ones connect at once with the cursor of
 * an event so many events ago.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "accounting.h"
#include "mark.h"
#include "stream.h"

#define SECOND 1000000000ull
#define PUBLISHERS_MAX 32
#define CURSORS 512        /* of the latest events, of which one is `behind` events ago */
#define CURSOR_MAX 160     /* bytes */
#define STALLED_BUFFER 4096 /* bytes that the kernel keeps for a client that does not read; it may take twice that */
#define CONNECT_PATIENCE (10 * SECOND) /* without a new client that is ready */
#define CONNECT_LIMIT (60 * SECOND)    /* for all of a group: a server that is too busy to accept is not waited for */
#define STORM_PATIENCE (60 * SECOND)
#define PUBLISHER_BIT (1ull << 40) /* tells an epoll event of a publisher from one of a client */

enum group { WARM, STALLED, LIVE, PLAIN, STORM, GROUPS };
enum readiness { AT_HEAD, AT_BODY, AT_EVENT }; /* when a client counts as connected */

static struct {
  int port, clients, warm, stalled, parallel, storm, behind, server;
  double settle, seconds, pause;
  const char *path, *stalled_path;
  char headers[4096];
  enum readiness ready_at;
  const char *publish_path; /* of one channel, whose number is put at %d */
  int publishers, depth, channels;
  double rate; /* events a second and channel; 0: as fast as the server answers, `depth` at a time */
} options = {.warm = 20, .parallel = 128, .settle = 1, .seconds = 3, .pause = 2, .path = "/sse", .ready_at = AT_BODY,
             .behind = 100, .depth = 8, .channels = 1};

struct client {
  struct stream stream; /* first: the stream's address is the client's */
  int fd;
  enum group group;
  bool is_ready, is_gone;
  uint64_t began;      /* when it connected */
  uint32_t events, replayed;
};

/* Of the ages of events: 64 steps for each doubling, so that no step is wider than 1.6 %. In units of 100 ns. */
#define STEPS 64
struct histogram {
  uint64_t counts[STEPS * STEPS], total, most;
};

/* What a group has received since the window began. Events that are older than their client's connection are replayed,
 * and their age says nothing of the delivery. */
struct tally {
  uint64_t events, replayed, reads, bytes;
  struct histogram ages;
};

static struct client *clients;
static int opened[GROUPS], ready[GROUPS], gone[GROUPS], refused[GROUPS], caught_up, in_flight, first_of[GROUPS];
static struct tally tallies[GROUPS];
static struct histogram first_bytes;
static int poller, address = 1;
static char buffer[256 * 1024];

static void die(const char *what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  exit(1);
}

/* ---- ages */

static void record(struct histogram *ages, uint64_t ns) {
  uint64_t value = ns / 100;
  int index = (int)value;
  if (value >= STEPS) {
    int doubling = 63 - __builtin_clzll(value); /* at least 6 */
    index = (doubling - 5) * STEPS + (int)((value >> (doubling - 6)) & (STEPS - 1));
  }
  ages->counts[index]++;
  ages->total++;
  if (ns > ages->most) ages->most = ns;
}

/* In microseconds, the lower end of the step. */
static double quantile(const struct histogram *ages, double share) {
  uint64_t wanted = (uint64_t)((double)ages->total * share), seen = 0;
  for (int index = 0; index < STEPS * STEPS; index++) {
    seen += ages->counts[index];
    if (seen <= wanted) continue;
    if (index < STEPS) return index / 10.0;
    return (double)((uint64_t)(STEPS + index % STEPS) << (index / STEPS - 1)) / 10.0;
  }
  return (double)ages->most / 1000;
}

/* ---- cursors: the `id` lines of the first live client, for the storm */

static char cursors[CURSORS][CURSOR_MAX], line[CURSOR_MAX + 4];
static uint64_t cursors_seen;
static size_t line_size;

static void saw_body(struct stream *stream, const char *bytes, size_t size) {
  if (!options.storm || (struct client *)stream != &clients[first_of[LIVE]]) return;
  for (size_t i = 0; i < size; i++) {
    if (bytes[i] != '\n') {
      if (line_size < sizeof line - 1) line[line_size++] = bytes[i];
      continue;
    }
    line[line_size] = 0;
    line_size = 0;
    if (!strncmp(line, "id: ", 4)) snprintf(cursors[cursors_seen++ % CURSORS], CURSOR_MAX, "%s", line + 4);
  }
}

/* ---- clients */

static void is_ready_now(struct client *client) {
  client->is_ready = true;
  ready[client->group]++;
  in_flight--;
  if (client->group == LIVE) record(&first_bytes, now_ns() - client->began);
}

static void leave(struct client *client) {
  if (client->is_gone) return;
  client->is_gone = true;
  if (!client->is_ready && client->group != STALLED) in_flight--;
  close(client->fd); /* with an RST, see connect_from: thousands of ports would wait in TIME_WAIT for a minute */
  free(client->stream.head);
  client->stream.head = NULL;
}

static uint64_t read_at; /* when the bytes that are being parsed had come */

static void saw_mark(struct stream *stream, uint64_t stamp) {
  struct client *client = (struct client *)stream;
  struct tally *tally = &tallies[client->group];
  if (options.ready_at == AT_EVENT && !client->is_ready) is_ready_now(client);
  if (stamp < client->began) {
    tally->replayed++;
    if (++client->replayed == (uint32_t)options.behind && client->group == STORM) caught_up++;
    return;
  }
  tally->events++;
  client->events++;
  record(&tally->ages, read_at > stamp ? read_at - stamp : 0);
}

static void read_client(struct client *client) {
  ssize_t size = recv(client->fd, buffer, sizeof buffer, MSG_DONTWAIT);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0) {
    gone[client->group]++;
    leave(client);
    return;
  }
  struct stream *stream = &client->stream;
  bool was_in_head = stream->status == 0;
  struct tally *tally = &tallies[client->group];
  read_at = now_ns();
  tally->reads++;
  tally->bytes += (uint64_t)size;
  stream_feed(stream, buffer, (size_t)size);
  if (was_in_head && stream->status && stream->status != 200) {
    if (!refused[client->group]++) fprintf(stderr, "load: refused: %.*s\n", (int)(size < 300 ? size : 300), buffer);
    leave(client);
    return;
  }
  bool has_body = stream->chunks || stream->place == IN_PLAIN_BODY;
  if (!client->is_ready && stream->status && (options.ready_at == AT_HEAD || (options.ready_at == AT_BODY && has_body)))
    is_ready_now(client);
}

/* A connection to the server from 127.0.0.`address`, or -1. Blocking: on loopback it is there as soon as the server's
 * backlog has room, which `parallel` sees to. */
static int connect_from(int receive_buffer) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  if (fd < 0) die("socket (is `ulimit -n` high enough?)");
  struct linger reset = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  if (receive_buffer) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = 0};
  if (address > 1) {
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    at.sin_addr.s_addr = htonl((127u << 24) + (unsigned)address);
    bind(fd, (struct sockaddr *)&at, sizeof at);
  }
  at.sin_port = htons((uint16_t)options.port);
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, (struct sockaddr *)&at, sizeof at)) {
    close(fd);
    return -1;
  }
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return fd;
}

static int dial(int receive_buffer) {
  int fd = connect_from(receive_buffer);
  if (fd < 0 && errno == EADDRNOTAVAIL && address < 250) { /* the ports of one address have run out */
    address++;
    fd = connect_from(receive_buffer);
  }
  if (fd < 0) die("connect");
  return fd;
}

static void listen_to(int fd, uint64_t what) {
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = what};
  if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void open_client(enum group group, const char *cursor) {
  int index = first_of[group] + opened[group]++;
  struct client *client = &clients[index];
  stream_begin(&client->stream);
  client->group = group;
  client->began = now_ns();
  client->fd = dial(group == STALLED ? STALLED_BUFFER : 0);
  char request[8192];
  int size = snprintf(request, sizeof request,
                      "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n%s%s%s%s\r\n",
                      group == STALLED ? options.stalled_path : options.path, options.headers,
                      cursor ? "Last-Event-ID: " : "", cursor ? cursor : "", cursor ? "\r\n" : "");
  if (send(client->fd, request, (size_t)size, MSG_NOSIGNAL) != size) die("send of a request");
  if (group == STALLED) return; /* nobody will ever read this socket */
  in_flight++;
  listen_to(client->fd, (uint64_t)index);
}

/* ---- publishers, for a server that takes its events by HTTP */

static struct {
  int fd, unanswered, matched;
} publishers[PUBLISHERS_MAX];
static uint64_t published, next_event;

static void publish(int which) {
  char event[EVENT_MAX], request[EVENT_MAX + 512], path[256];
  int channel = (int)(published % (uint64_t)options.channels);
  int size = put_event(event, 1000000 + published++, channel);
  snprintf(path, sizeof path, options.publish_path, channel);
  int length = snprintf(request, sizeof request,
                        "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                        "Content-Length: %d\r\n\r\n%s", path, size, event);
  if (send(publishers[which].fd, request, (size_t)length, MSG_NOSIGNAL) != length) die("send of an event");
  publishers[which].unanswered++;
}

static void read_publisher(int which) {
  static const char answer[] = "HTTP/1.";
  ssize_t size = recv(publishers[which].fd, buffer, sizeof buffer, MSG_DONTWAIT);
  if (size == 0) die("the server has closed a publisher's connection");
  for (ssize_t i = 0; i < size; i++) {
    int *matched = &publishers[which].matched;
    *matched = buffer[i] == answer[*matched] ? *matched + 1 : buffer[i] == answer[0];
    if (answer[*matched]) continue;
    *matched = 0;
    if (publishers[which].unanswered) publishers[which].unanswered--;
  }
}

static void publish_what_is_due(void) {
  if (options.rate <= 0) {
    for (int which = 0; which < options.publishers; which++)
      while (publishers[which].unanswered < options.depth) publish(which);
    return;
  }
  for (; now_ns() >= next_event; next_event += (uint64_t)(SECOND / (options.rate * options.channels)))
    publish((int)(published % (uint64_t)options.publishers));
}

/* ---- time */

/* Waits for at most `ms`, and reads whatever has come. */
static void turn(int ms) {
  struct epoll_event events[512];
  int count = epoll_wait(poller, events, 512, ms);
  for (int i = 0; i < count; i++) {
    uint64_t what = events[i].data.u64;
    if (what & PUBLISHER_BIT)
      read_publisher((int)(what & 0xff));
    else if (!clients[what].is_gone)
      read_client(&clients[what]);
  }
}

static bool is_publishing;

static void run_until(uint64_t end) {
  for (uint64_t now; (now = now_ns()) < end;) {
    uint64_t until = end;
    if (is_publishing) {
      publish_what_is_due();
      if (options.rate > 0 && next_event < until) until = next_event;
      now = now_ns();
    }
    turn(until > now ? (int)((until - now + 999999) / 1000000) : 0);
  }
}

/* Connects `count` clients, at most `parallel` of them waiting at a time, and waits until they are ready. */
static void connect_group(enum group group, int count, const char *cursor) {
  int ready_before = 0;
  uint64_t began = now_ns(), moved = began;
  while (ready[group] + gone[group] + refused[group] < count) {
    if (now_ns() - moved > CONNECT_PATIENCE || now_ns() - began > CONNECT_LIMIT) return;
    /* A few at a time: those who wait for their answer, and the live ones, are to be read in time. */
    for (int i = 0; i < 16 && opened[group] < count && in_flight < options.parallel; i++) open_client(group, cursor);
    turn(opened[group] < count && in_flight < options.parallel ? 0 : 20);
    if (ready[group] != ready_before) {
      ready_before = ready[group];
      moved = now_ns();
    }
  }
}

static void dismiss(enum group group) {
  for (int i = 0; i < opened[group]; i++) leave(&clients[first_of[group] + i]);
}

/* ---- windows: what happened between two moments */

struct window {
  uint64_t began, own_cpu, chunks;
  struct used server;
  double seconds;
};

static uint64_t own_cpu_ns(void) {
  struct timespec used;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return (uint64_t)used.tv_sec * SECOND + (uint64_t)used.tv_nsec;
}

static uint64_t all_chunks(void) {
  uint64_t sum = 0;
  for (int i = 0; i < opened[LIVE]; i++) sum += clients[first_of[LIVE] + i].stream.chunks;
  return sum;
}

static struct window begin_window(void) {
  memset(tallies, 0, sizeof tallies);
  for (int i = 0; i < opened[LIVE]; i++) clients[first_of[LIVE] + i].events = 0;
  struct window window = {.chunks = all_chunks(), .own_cpu = own_cpu_ns(), .server = used_under(options.server)};
  window.began = now_ns();
  return window;
}

static void end_window(struct window *window) {
  window->seconds = (double)(now_ns() - window->began) / SECOND;
  struct used now = used_under(options.server);
  window->server.cpu = now.cpu - window->server.cpu;
  window->server.waited = now.waited - window->server.waited;
  window->own_cpu = own_cpu_ns() - window->own_cpu;
  window->chunks = all_chunks() - window->chunks;
}

static void print_window(const char *name, const struct window *window) {
  const struct tally *live = &tallies[LIVE];
  uint32_t least = UINT32_MAX, most = 0;
  for (int i = 0; i < opened[LIVE]; i++) {
    uint32_t events = clients[first_of[LIVE] + i].events;
    if (events < least) least = events;
    if (events > most) most = events;
  }
  printf(", \"%s\": {\"seconds\": %.4f, \"server_cpu_us\": %.1f, \"server_waited_us\": %.1f, "
         "\"client_cpu_us\": %.1f, \"events\": %llu, "
         "\"reads\": %llu, \"bytes\": %llu, \"chunks\": %llu, \"least\": %u, \"most\": %u, "
         "\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f",
         name, window->seconds, (double)window->server.cpu / 1000, (double)window->server.waited / 1000,
         (double)window->own_cpu / 1000,
         (unsigned long long)live->events, (unsigned long long)live->reads, (unsigned long long)live->bytes,
         (unsigned long long)window->chunks, opened[LIVE] ? least : 0, most, quantile(&live->ages, 0.5),
         quantile(&live->ages, 0.99), (double)live->ages.most / 1000);
}

static void print_newcomers(enum group group) {
  const struct tally *tally = &tallies[group];
  printf(", \"newcomers\": %d, \"newcomers_ready\": %d, \"newcomers_lost\": %d, \"newcomers_events\": %llu, "
         "\"replayed\": %llu", opened[group], ready[group], gone[group] + refused[group],
         (unsigned long long)tally->events, (unsigned long long)tally->replayed);
}

/* ---- what is done, in order */

static void warm_up(void) {
  if (!options.warm) return;
  connect_group(WARM, options.warm, NULL);
  dismiss(WARM);
  run_until(now_ns() + SECOND / 2);
}

static void connect_live(void) {
  struct window window = begin_window();
  connect_group(LIVE, options.clients, NULL);
  end_window(&window);
  print_window("connect", &window);
  printf(", \"ready\": %d, \"lost\": %d, \"refused\": %d, \"first_p50_us\": %.1f, \"first_p99_us\": %.1f}",
         ready[LIVE], gone[LIVE], refused[LIVE], quantile(&first_bytes, 0.5), quantile(&first_bytes, 0.99));
}

static void open_publishers(void) {
  for (int i = 0; i < options.publishers; i++) {
    publishers[i].fd = dial(0);
    listen_to(publishers[i].fd, PUBLISHER_BIT | (uint64_t)i);
  }
  next_event = now_ns();
  is_publishing = options.publishers > 0;
}

static void measure(const char *name) {
  struct window window = begin_window();
  run_until(window.began + (uint64_t)(options.seconds * SECOND));
  end_window(&window);
  print_window(name, &window);
  printf(", \"lost\": %d}", gone[LIVE]);
}

/* The plain ones say what connecting costs while the live ones are served, the crowd what serving them all does; the
 * storm is the same with a cursor. */
static void measure_storm(void) {
  for (uint64_t end = now_ns() + STORM_PATIENCE; cursors_seen <= (uint64_t)options.behind && now_ns() < end;)
    run_until(now_ns() + SECOND / 10);
  if (cursors_seen <= (uint64_t)options.behind) {
    errno = ENODATA;
    die("the first client's stream has not enough `id` lines for a cursor");
  }
  struct window plain = begin_window();
  connect_group(PLAIN, options.storm, NULL);
  end_window(&plain);
  print_window("plain", &plain);
  print_newcomers(PLAIN);
  printf("}");
  run_until(now_ns() + (uint64_t)(options.pause * SECOND));
  struct window crowd = begin_window();
  run_until(crowd.began + (uint64_t)(options.seconds * SECOND));
  end_window(&crowd);
  print_window("crowd", &crowd);
  print_newcomers(PLAIN);
  printf("}");
  dismiss(PLAIN);
  run_until(now_ns() + (uint64_t)(options.pause * SECOND));

  const char *cursor = cursors[(cursors_seen - 1 - (uint64_t)options.behind) % CURSORS];
  struct window storm = begin_window();
  connect_group(STORM, options.storm, cursor);
  while (caught_up + gone[STORM] + refused[STORM] < options.storm && now_ns() - storm.began < STORM_PATIENCE) turn(5);
  end_window(&storm);
  print_window("storm", &storm);
  print_newcomers(STORM);
  printf(", \"caught_up\": %d}", caught_up);
}

static void read_options(int count, char **words) {
  static const struct option known[] = {
      {"port", 1, 0, 'p'},          /* of the server, on 127.0.0.1 */
      {"path", 1, 0, 'u'},          /* of the stream, with its query */
      {"header", 1, 0, 'h'},        /* "Name: value" in each request; may come again */
      {"clients", 1, 0, 'n'},       /* live ones */
      {"warm", 1, 0, 'w'},          /* how many come and go before */
      {"stalled", 1, 0, 'z'},       /* how many never read */
      {"stalled-path", 1, 0, 'Z'},  /* what these ask for; the same as the others if it is not given */
      {"parallel", 1, 0, 'c'},      /* how many may wait for their answer at a time */
      {"ready", 1, 0, 'r'},         /* connected is who has the `head`, a first byte of the `body`, or an `event` */
      {"settle", 1, 0, 's'},        /* seconds from the last connection to the measurement */
      {"seconds", 1, 0, 'd'},       /* that are measured */
      {"server", 1, 0, 'k'},        /* process whose CPU and memory are measured, with its descendants */
      {"publish", 1, 0, 'P'},       /* path to which an event is posted; %d is the channel */
      {"publishers", 1, 0, 'M'},    /* connections that post */
      {"depth", 1, 0, 'D'},         /* posts without an answer, for each of them */
      {"channels", 1, 0, 'S'},      /* that are posted to in turn */
      {"rate", 1, 0, 'R'},          /* posts a second and channel; 0: as many as are answered */
      {"storm", 1, 0, 'N'},         /* how many reconnect at once, when all else is measured */
      {"behind", 1, 0, 'B'},        /* events that these have missed, below 512 */
      {"pause", 1, 0, 'q'},         /* seconds of rest after connecting, and before the storm */
      {0, 0, 0, 0}};
  for (int letter; (letter = getopt_long(count, words, "", known, NULL)) != -1;) switch (letter) {
      case 'p': options.port = atoi(optarg); break;
      case 'u': options.path = optarg; break;
      case 'h':
        strncat(options.headers, optarg, sizeof options.headers - strlen(options.headers) - 3);
        strcat(options.headers, "\r\n");
        break;
      case 'n': options.clients = atoi(optarg); break;
      case 'w': options.warm = atoi(optarg); break;
      case 'z': options.stalled = atoi(optarg); break;
      case 'Z': options.stalled_path = optarg; break;
      case 'c': options.parallel = atoi(optarg); break;
      case 'r': options.ready_at = *optarg == 'h' ? AT_HEAD : *optarg == 'e' ? AT_EVENT : AT_BODY; break;
      case 's': options.settle = atof(optarg); break;
      case 'd': options.seconds = atof(optarg); break;
      case 'k': options.server = atoi(optarg); break;
      case 'P': options.publish_path = optarg; break;
      case 'M': options.publishers = atoi(optarg) < PUBLISHERS_MAX ? atoi(optarg) : PUBLISHERS_MAX; break;
      case 'D': options.depth = atoi(optarg); break;
      case 'S': options.channels = atoi(optarg); break;
      case 'R': options.rate = atof(optarg); break;
      case 'N': options.storm = atoi(optarg); break;
      case 'B': options.behind = atoi(optarg) < CURSORS - 1 ? atoi(optarg) : CURSORS - 1; break;
      case 'q': options.pause = atof(optarg); break;
      default: exit(2);
    }
  if (!options.stalled_path) options.stalled_path = options.path;
}

int main(int count, char **words) {
  read_options(count, words);
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  poller = epoll_create1(0);
  int sizes[GROUPS] = {options.warm, options.stalled, options.clients, options.storm, options.storm}, total = 0;
  for (int group = 0; group < GROUPS; group++) {
    first_of[group] = total;
    total += sizes[group];
  }
  clients = calloc((size_t)total + 1, sizeof *clients);
  if (!clients) die("memory");

  printf("{\"clients\": %d, \"stalled\": %d", options.clients, options.stalled);
  warm_up();
  long memory = rss_kib(options.server);
  for (int i = 0; i < options.stalled; i++) open_client(STALLED, NULL);
  if (options.stalled) run_until(now_ns() + SECOND / 2); /* they are no part of what connecting costs */
  connect_live();
  open_publishers();
  run_until(now_ns() + (uint64_t)(options.settle * SECOND));
  measure("steady");
  printf(", \"memory\": {\"before_kib\": %ld, \"after_kib\": %ld}", memory, rss_kib(options.server));
  if (options.storm) measure_storm();
  printf(", \"addresses\": %d}\n", address);
  return 0;
}
