/* What the operating system says of the server: CPU time and resident memory of a whole tree of processes.
 *
 * CPU is read from /proc/PID/task/TID/schedstat, in nanoseconds, together with the time for which a thread could have
 * run and had no core; where the kernel keeps none, from the clock ticks of /proc/PID/stat. Both count the softirq work
 * that is done in the server's own context: on loopback that is what the receiving side of TCP costs.
 */
#ifndef ACCOUNTING_H
#define ACCOUNTING_H

#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TREE_MAX 256

static int tree[TREE_MAX], tree_size;

static int parent_of(int pid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE *file = fopen(path, "r");
  if (!file) return -1;
  size_t size = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[size] = 0;
  char *name_end = strrchr(text, ')'); /* a process may have brackets in its name */
  int parent = -1;
  if (name_end) sscanf(name_end + 2, "%*c %d", &parent);
  return parent;
}

static bool in_tree(int pid) {
  for (int i = 0; i < tree_size; i++)
    if (tree[i] == pid) return true;
  return false;
}

/* Fills `tree` with `root` and all its descendants. Passes over /proc until nobody is added: order is by pid there, and
 * a child may have a smaller one than its parent. */
static void find_tree(int root) {
  tree_size = 0;
  tree[tree_size++] = root;
  for (bool grew = true; grew;) {
    grew = false;
    DIR *all = opendir("/proc");
    if (!all) return;
    for (struct dirent *entry; (entry = readdir(all));) {
      int pid = atoi(entry->d_name);
      if (pid > 0 && tree_size < TREE_MAX && !in_tree(pid) && in_tree(parent_of(pid))) {
        tree[tree_size++] = pid;
        grew = true;
      }
    }
    closedir(all);
  }
}

static uint64_t ticks_of(int pid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE *file = fopen(path, "r");
  if (!file) return 0;
  size_t size = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[size] = 0;
  char *name_end = strrchr(text, ')');
  unsigned long user = 0, system = 0;
  if (name_end) sscanf(name_end + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
  return (user + system) * (1000000000u / (uint64_t)sysconf(_SC_CLK_TCK));
}

/* Nanoseconds. `waited`: for a core that others had. */
struct used {
  uint64_t cpu, waited;
};

static struct used used_by(int pid) {
  char path[400];
  struct used sum = {0, 0};
  bool is_known = false;
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR *threads = opendir(path);
  if (!threads) return sum;
  for (struct dirent *entry; (entry = readdir(threads));) {
    if (entry->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, entry->d_name);
    FILE *file = fopen(path, "r");
    unsigned long long on_cpu, waited;
    if (file && fscanf(file, "%llu %llu", &on_cpu, &waited) == 2) {
      sum.cpu += on_cpu;
      sum.waited += waited;
      is_known = true;
    }
    if (file) fclose(file);
  }
  closedir(threads);
  if (!is_known) sum.cpu = ticks_of(pid);
  return sum;
}

/* What the processes under `root` have used until now. */
static struct used used_under(int root) {
  struct used sum = {0, 0};
  find_tree(root);
  for (int i = 0; i < tree_size; i++) {
    struct used one = used_by(tree[i]);
    sum.cpu += one.cpu;
    sum.waited += one.waited;
  }
  return sum;
}

/* Resident memory of the processes under `root`; what they share counts in each. */
static long rss_kib(int root) {
  long sum = 0;
  find_tree(root);
  for (int i = 0; i < tree_size; i++) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/status", tree[i]);
    FILE *file = fopen(path, "r");
    if (!file) continue;
    for (long kib; fgets(line, sizeof line, file);)
      if (sscanf(line, "VmRSS: %ld", &kib) == 1) sum += kib;
    fclose(file);
  }
  return sum;
}

#endif
