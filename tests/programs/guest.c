// What test guests are driven by: a shell for the host, and a runtime that is as small as one can be.
//
//   guest serve PORT                     run each line that comes over vsock with sh; answer its output and "\n#exit N\n"
//   guest run ROOT ID [KEY=VALUE ...] -- COMMAND ...
//                                        a container: cgroup ROOT/ID with KEY written to (memory.max=8M), COMMAND as the init of
//                                        a pid namespace of its own, an orphan; prints its pid
//   guest share ROOT ID ... -- COMMAND   the same in this pid namespace
//   guest churn ROOT NAME COUNT          so many containers after each other that exit with 0..255, each removed when it is empty
//   guest switches PID SECONDS           how often a process went to sleep by itself in that time
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what) {
    fprintf(stderr, "guest: %s: %s\n", what, strerror(errno));
    exit(111);
}

static void answer(int link) {
    char line[65536];
    size_t length = 0;
    while (length < sizeof line - 1 && read(link, line + length, 1) == 1 && line[length] != '\n') length++;
    line[length] = 0;
    signal(SIGCHLD, SIG_DFL);
    pid_t shell = fork();
    if (!shell) {
        dup2(link, 1);
        dup2(link, 2);
        close(link);
        execl("/bin/sh", "sh", "-c", line, (char *)0);
        _exit(127);
    }
    int status = 0;
    waitpid(shell, &status, 0);
    dprintf(link, "\n#exit %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    _exit(0);
}

__attribute__((noreturn)) static void serve(int port) {
    // Orphans that are reparented to this process are reaped by the kernel.
    signal(SIGCHLD, SIG_IGN);
    int server = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    if (server < 0 || bind(server, (void *)&address, sizeof address) || listen(server, 64)) fail("vsock");
    for (;;) {
        int link = accept4(server, 0, 0, SOCK_CLOEXEC);
        if (link < 0) continue;
        if (!fork()) answer(link);
        close(link);
    }
}

static void write_key(const char *folder, const char *key, const char *value) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, key);
    int file = open(path, O_WRONLY);
    if (file < 0 || write(file, value, strlen(value)) < 0) fail(path);
    close(file);
}

static pid_t into(int cgroup, int flags) {
    struct clone_args arguments = {.flags = CLONE_INTO_CGROUP | flags, .exit_signal = SIGCHLD, .cgroup = cgroup};
    return syscall(SYS_clone3, &arguments, sizeof arguments);
}

static int run(char **arguments, int flags) {
    char folder[256];
    snprintf(folder, sizeof folder, "/sys/fs/cgroup/%s", arguments[0]);
    mkdir(folder, 0755);
    snprintf(folder, sizeof folder, "/sys/fs/cgroup/%s/%s", arguments[0], arguments[1]);
    if (mkdir(folder, 0755) && errno != EEXIST) fail(folder);
    for (arguments += 2; *arguments && strcmp(*arguments, "--"); arguments++) {
        char *value = strchr(*arguments, '=');
        if (!value) return 9;
        *value = 0;
        write_key(folder, *arguments, value + 1);
    }
    if (!*arguments) return 9;
    int cgroup = open(folder, O_DIRECTORY | O_CLOEXEC);
    // Its parent ends at once, as runc's does.
    pid_t init = into(cgroup, flags);
    if (init < 0) fail("clone3");
    if (!init) {
        int nothing = open("/dev/null", O_RDWR);
        for (int at = 0; at < 3; at++) dup2(nothing, at);
        execv(arguments[1], arguments + 1);
        _exit(127);
    }
    printf("%d\n", init);
    return 0;
}

static int churn(const char *root, const char *name, long count) {
    char folder[256], events[300], text[128];
    for (long at = 0; at < count; at++) {
        snprintf(folder, sizeof folder, "/sys/fs/cgroup/%s/%s-%ld", root, name, at);
        if (mkdir(folder, 0755)) fail(folder);
        int cgroup = open(folder, O_DIRECTORY | O_CLOEXEC);
        pid_t runtime = fork();
        if (!runtime) {
            pid_t init = into(cgroup, CLONE_NEWPID);
            if (init < 0) fail("clone3");
            _exit(init ? 0 : at % 256);
        }
        waitpid(runtime, 0, 0);
        close(cgroup);
        snprintf(events, sizeof events, "%s/cgroup.events", folder);
        for (;;) {
            int file = open(events, O_RDONLY);
            ssize_t length = read(file, text, sizeof text - 1);
            close(file);
            text[length > 0 ? length : 0] = 0;
            if (strstr(text, "populated 0")) break;
            usleep(500);
        }
        if (rmdir(folder)) fail(folder);
    }
    return 0;
}

static long voluntary(const char *pid) {
    char path[64], line[256];
    long found = -1;
    snprintf(path, sizeof path, "/proc/%s/status", pid);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status)) sscanf(line, "voluntary_ctxt_switches: %ld", &found);
    if (found < 0) fail(path);
    fclose(status);
    return found;
}

static int switches(const char *pid, int seconds) {
    // What this process itself began has been noticed by then.
    sleep(5);
    long before = voluntary(pid);
    sleep(seconds);
    printf("%ld\n", voluntary(pid) - before);
    return 0;
}

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "serve")) serve(atoi(arguments[2]));
    if (count > 5 && !strcmp(arguments[1], "run")) return run(arguments + 2, CLONE_NEWPID);
    if (count > 5 && !strcmp(arguments[1], "share")) return run(arguments + 2, 0);
    if (count == 4 && !strcmp(arguments[1], "switches")) return switches(arguments[2], atoi(arguments[3]));
    if (count == 5 && !strcmp(arguments[1], "churn")) return churn(arguments[2], arguments[3], atol(arguments[4]));
    return 9;
}
