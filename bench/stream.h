/* One response of a server, read as its bytes come: head, chunks, marks. Nothing is kept but what is not complete yet.
 *
 * Chunks are decoded, and not only searched: a server that writes in pieces may cut a mark in two, and then a chunk's
 * head stands in the middle of it. Whoever includes this defines `saw_mark` and `saw_body`.
 */
#ifndef STREAM_H
#define STREAM_H

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "mark.h"

#define HEAD_MAX 8192

enum place { IN_HEAD, IN_SIZE, IN_EXTENSION, IN_CHUNK, AFTER_CHUNK, IN_PLAIN_BODY, AT_END };

struct stream {
  enum place place;
  int status;      /* 0 until the head is complete, -1 if it is none */
  uint64_t left;   /* bytes of the present chunk */
  uint64_t stamp;  /* of the mark that is being read */
  int digits;      /* of it; -1 outside of a mark */
  char *head;      /* only while it is not complete */
  size_t head_size;
  uint64_t chunks; /* begun until now; a chunk is a write of most servers */
};

static void saw_mark(struct stream *stream, uint64_t stamp);
static void saw_body(struct stream *stream, const char *bytes, size_t size);

static void stream_begin(struct stream *stream) {
  free(stream->head);
  memset(stream, 0, sizeof *stream);
  stream->digits = -1;
}

static void read_marks(struct stream *stream, const char *at, const char *end) {
  while (at < end) {
    if (stream->digits < 0) {
      at = memchr(at, '@', (size_t)(end - at));
      if (!at) return;
      at++;
      stream->digits = 0;
      stream->stamp = 0;
    }
    for (; at < end && stream->digits < MARK_DIGITS && isdigit((unsigned char)*at); at++, stream->digits++)
      stream->stamp = stream->stamp * 10 + (uint64_t)(*at - '0');
    if (stream->digits == MARK_DIGITS) saw_mark(stream, stream->stamp);
    if (stream->digits == MARK_DIGITS || at < end) stream->digits = -1; /* else it goes on in the next piece */
  }
}

static void read_body(struct stream *stream, const char *bytes, size_t size) {
  if (!size) return;
  saw_body(stream, bytes, size);
  read_marks(stream, bytes, bytes + size);
}

/* Returns how many of the bytes belong to the head. */
static size_t read_head(struct stream *stream, const char *bytes, size_t size) {
  size_t before = stream->head_size, room = HEAD_MAX - before, taken = size < room ? size : room;
  if (!stream->head) stream->head = malloc(HEAD_MAX + 1);
  if (!stream->head) abort();
  memcpy(stream->head + before, bytes, taken);
  stream->head_size += taken;
  stream->head[stream->head_size] = 0;
  char *end = strstr(stream->head, "\r\n\r\n");
  if (!end) {
    if (stream->head_size == HEAD_MAX) stream->status = -1;
    return taken;
  }
  end[2] = 0;
  if (sscanf(stream->head, "HTTP/1.%*d %d", &stream->status) != 1) stream->status = -1;
  stream->place = strcasestr(stream->head, "\r\ntransfer-encoding: chunked\r\n") ? IN_SIZE : IN_PLAIN_BODY;
  taken = (size_t)(end + 4 - stream->head) - before;
  free(stream->head);
  stream->head = NULL;
  return taken;
}

static void read_size(struct stream *stream, char letter) {
  if (isxdigit((unsigned char)letter)) {
    int value = isdigit((unsigned char)letter) ? letter - '0' : tolower((unsigned char)letter) - 'a' + 10;
    stream->left = stream->left * 16 + (uint64_t)value;
  } else if (letter == '\n') {
    stream->place = stream->left ? IN_CHUNK : AT_END;
    stream->chunks += stream->left > 0;
  } else {
    stream->place = IN_EXTENSION; /* ";name=value", or the CR */
  }
}

/* Takes what has come from the server. */
static void stream_feed(struct stream *stream, const char *bytes, size_t size) {
  const char *at = bytes, *end = bytes + size;
  while (at < end && stream->status >= 0) {
    size_t there = (size_t)(end - at);
    switch (stream->place) {
      case IN_HEAD:
        at += read_head(stream, at, there);
        break;
      case IN_EXTENSION:
        if (*at == '\n') read_size(stream, '\n');
        at++;
        break;
      case IN_SIZE:
        read_size(stream, *at++);
        break;
      case IN_CHUNK: {
        size_t taken = there < stream->left ? there : (size_t)stream->left;
        read_body(stream, at, taken);
        at += taken;
        stream->left -= taken;
        if (!stream->left) stream->place = AFTER_CHUNK;
        break;
      }
      case AFTER_CHUNK:
        if (*at++ == '\n') stream->place = IN_SIZE;
        break;
      case IN_PLAIN_BODY:
        read_body(stream, at, there);
        return;
      case AT_END:
        return;
    }
  }
}

#endif
