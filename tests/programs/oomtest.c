// The program of every test container.
//
//   oomtest [await | delay MS] ACTION
//     await             print "waiting", then block until SIGUSR1
//     delay MS          sleep first
//   ACTION
//     pause             print "paused", then sleep until SIGTERM
//     self MB           use MB of memory in this process
//     child MB RC MS [GAP]
//                       use MB of memory in a child, GAP milliseconds between them, wait for it,
//                       sleep MS, exit with RC
//     children N MB MS  use MB of memory in N children, one after the other, MS between them; exit with 0
//     crowd N MB        use MB of memory in this process, beside N children that sleep
//     hold MB           use MB of memory, print "held", then sleep until SIGTERM
//     slow MB MS        use MB of memory in this process, one after the other, MS between them
//     exit RC           exit with RC
//     crash             end by SIGSEGV
//     seccomp           end by SIGSYS: a system call that its filter forbids
//     kill SIGNAL       send a signal to a child, and end as it ended: 128 + SIGNAL
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void use_memory_slowly(long megabytes, long gap_ms) {
    for (long i = 0; i < megabytes; i++) {
        if (gap_ms) usleep(gap_ms * 1000);
        char *page = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) _exit(3);
        memset(page, 0xA5, 1 << 20);
    }
}

static void use_memory(long megabytes) { use_memory_slowly(megabytes, 0); }

static void await_signal(void) {
    sigset_t set;
    int signal;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    // Blocked before it is announced: a pid 1 loses signals it neither handles nor blocks.
    sigprocmask(SIG_BLOCK, &set, 0);
    puts("waiting");
    sigwait(&set, &signal);
}

int main(int count, char **arguments) {
    char **next = arguments + 1;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (count > 1 && !strcmp(*next, "await")) {
        await_signal();
        next++;
    } else if (count > 2 && !strcmp(*next, "delay")) {
        usleep(atoi(next[1]) * 1000);
        next += 2;
    }
    long left = arguments + count - next;
    if (left < 1) return 9;
    if (!strcmp(*next, "pause")) {
        signal(SIGTERM, exit);
        signal(SIGINT, exit);
        // A pid 1 loses a SIGTERM that comes before.
        puts("paused");
        for (;;) pause();
    }
    if (left == 2 && !strcmp(*next, "self")) {
        use_memory(atol(next[1]));
        return 0;
    }
    if ((left == 4 || left == 5) && !strcmp(*next, "child")) {
        if (!fork()) {
            use_memory_slowly(atol(next[1]), left == 5 ? atol(next[4]) : 0);
            _exit(0);
        }
        wait(0);
        usleep(atoi(next[3]) * 1000);
        return atoi(next[2]);
    }
    if (left == 4 && !strcmp(*next, "children")) {
        for (long at = 0; at < atol(next[1]); at++) {
            if (!fork()) {
                use_memory(atol(next[2]));
                _exit(0);
            }
            wait(0);
            usleep(atoi(next[3]) * 1000);
        }
        return 0;
    }
    if (left == 3 && !strcmp(*next, "crowd")) {
        for (long at = 0; at < atol(next[1]); at++)
            if (!fork()) for (;;) pause();
        use_memory(atol(next[2]));
        return 0;
    }
    if (left == 3 && !strcmp(*next, "slow")) {
        for (long at = 0; at < atol(next[1]); at++) {
            use_memory(1);
            usleep(atoi(next[2]) * 1000);
        }
        return 0;
    }
    if (left == 2 && !strcmp(*next, "hold")) {
        signal(SIGTERM, exit);
        use_memory(atol(next[1]));
        puts("held");
        for (;;) pause();
    }
    if (left == 1 && !strcmp(*next, "crash")) *(volatile int *)0 = 1;
    if (left == 1 && !strcmp(*next, "seccomp")) {
        struct sock_filter forbid = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
        struct sock_fprog filter = {.len = 1, .filter = &forbid};
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
        getppid();
        return 3;
    }
    if (left == 2 && !strcmp(*next, "kill")) {
        // As pid 1 of its namespace it cannot end by a signal of its own.
        int status = 0, child = fork();
        if (!child) for (;;) pause();
        kill(child, atoi(next[1]));
        waitpid(child, &status, 0);
        return 128 + WTERMSIG(status);
    }
    if (left == 2 && !strcmp(*next, "exit")) return atoi(next[1]);
    return 9;
}
