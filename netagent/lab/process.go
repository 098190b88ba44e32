package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// startTime is when a process began, in clock ticks since boot: with the pid it names one process
// for ever, while a pid alone may be somebody else's by now.
func startTime(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is the program's name in brackets and may hold anything; count from its end.
	_, rest, ok := bytes.Cut(data[bytes.LastIndexByte(data, ')'):], []byte(" "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 20 {
		return "", fmt.Errorf("process %d: stat has %d fields after the name, want at least 20", pid, len(fields))
	}
	return string(fields[19]), nil
}

// writePID records the calling process for `down`.
func writePID(path string) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	return writeFile(path, fmt.Appendf(nil, "%d %s\n", os.Getpid(), start))
}

// recordedPID returns the process of a pid file, or 0 when it is gone.
func recordedPID(path string) int {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pidText, start, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	pid, err := strconv.Atoi(pidText)
	if err != nil {
		return 0
	}
	if now, err := startTime(pid); err != nil || now != start {
		return 0
	}
	return pid
}

// pids lists the processes of the machine, without the calling one.
func pids() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out, nil
}

// daemons finds the daemon of a lab: by its pid file, and by its command line for one that was
// started but did not come to write the file.
func daemons(p paths) ([]int, error) {
	all, err := pids()
	if err != nil {
		return nil, err
	}
	recorded := recordedPID(p.daemonPID())
	want := append([]string{"lab"}, daemonArgs(p.name)...)
	return slices.DeleteFunc(all, func(pid int) bool {
		return pid != recorded && !slices.Equal(cmdline(pid), want)
	}), nil
}

// cmdline returns the arguments of a process, without the program.
func cmdline(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")[1:]
}

// inhabitants finds the processes that live in one of the namespaces.
func inhabitants(ids map[nsID]bool) ([]int, error) {
	all, err := pids()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(pid int) bool {
		id, ok := nsIDOf(filepath.Join("/proc", strconv.Itoa(pid), "ns", "net"))
		return !ok || !ids[id]
	}), nil
}

// killWait bounds the wait for killed processes, which only the kernel can delay.
const killWait = 5 * time.Second

// endAll asks processes to end, waits up to grace, kills those that stay, and returns the ones that
// even then did not end.
func endAll(targets []int, grace time.Duration) (left []int) {
	fds := map[int]int{} // pid → pidfd: a pidfd can never come to mean another process
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range targets {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds[pid] = fd
		}
	}
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, killWait}} {
		for _, fd := range fds {
			_ = unix.PidfdSendSignal(fd, step.signal, nil, 0) // ended already: nothing to do
		}
		waitEnd(fds, step.wait)
	}
	for pid := range fds {
		left = append(left, pid)
	}
	slices.Sort(left)
	return left
}

// waitEnd waits until every process ended or the time is over, and removes the ended ones.
func waitEnd(fds map[int]int, limit time.Duration) {
	deadline := time.Now().Add(limit)
	for len(fds) > 0 {
		var order []int
		var poll []unix.PollFd
		for pid, fd := range fds {
			order = append(order, pid)
			poll = append(poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
		rest := max(0, time.Until(deadline))
		n, err := unix.Poll(poll, int(rest/time.Millisecond)+1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		for i, f := range poll {
			if f.Revents != 0 {
				unix.Close(fds[order[i]])
				delete(fds, order[i])
			}
		}
	}
}
