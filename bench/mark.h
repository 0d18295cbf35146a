/* What every server of the benchmark sends, and by what clock: one JSON object of 120 bytes with a mark in it.
 *
 * A mark is '@' and 19 digits: CLOCK_MONOTONIC in nanoseconds at the moment in which the event was made. Server and
 * client are on one machine, so that the client can tell an event's age without a clock that has to be in step.
 */
#ifndef MARK_H
#define MARK_H

#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define MARK_DIGITS 19
#define EVENT_MAX 256 /* bytes that one event's JSON takes at most */

static inline uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Writes one event's JSON to `out` (EVENT_MAX bytes) and returns its length. The Python sources make the same. */
static inline int put_event(char *out, unsigned long number, int channel) {
  return snprintf(out, EVENT_MAX, "{\"t\":\"@%019llu\",\"seq\":%07lu,\"src\":\"s%02d\",\"value\":\"%056d\"}",
                  (unsigned long long)now_ns(), number, channel, 0);
}

#endif
