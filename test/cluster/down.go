package main

import (
	"context"
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

// killWait bounds the wait for killed processes, which only the kernel can delay.
const killWait = 20 * time.Second

func runDown(ctx context.Context, args []string) error {
	o := &options{}
	if _, err := parse(flags("down", o), o, args); err != nil {
		return err
	}
	return o.remove(ctx)
}

// remove removes a cluster by what can be seen of it: its namespaces' names, the processes inside them, the
// mounts and files in its folder, its cgroups. It needs no record, so an `up` that was killed half-way goes
// as well as a cluster whose folder somebody removed.
func (o *options) remove(ctx context.Context) error {
	names, err := spaces(o.Name)
	if err != nil {
		return err
	}
	killed, err := killInhabitants(ctx, names)
	if err != nil {
		return err
	}
	for _, n := range names {
		err = errors.Join(err, deleteSpace(n))
	}
	err = errors.Join(err, unmountBelow(o.State), removeCgroups(o.cgroup()))
	if err == nil {
		err = os.RemoveAll(o.State)
	}
	if err != nil {
		return fmt.Errorf("remove cluster %s: %w; `down` may be repeated", o.Name, err)
	}
	fmt.Printf("cluster %s is gone (%d namespaces, %d processes)\n", o.Name, len(names), killed)
	return nil
}

// inhabitants lists the processes, by their numbers on the machine, that live in one of the network
// namespaces.
func inhabitants(names []string) ([]int, error) {
	ids := map[[2]uint64]bool{}
	for _, n := range names {
		if id, ok := fileID(nsPath(n)); ok {
			ids[id] = true
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if id, ok := fileID(filepath.Join("/proc", e.Name(), "ns/net")); ok && ids[id] {
			out = append(out, pid)
		}
	}
	return out, nil
}

// fileID names a file, and so a namespace, for as long as it exists.
func fileID(path string) ([2]uint64, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return [2]uint64{}, false
	}
	return [2]uint64{st.Dev, st.Ino}, true
}

// killInhabitants kills until nobody is left. With process 1 of a place everything in its process namespace
// ends, pods with networks of their own included.
func killInhabitants(ctx context.Context, names []string) (int, error) {
	killed := map[int]bool{}
	err := await(ctx, "the cluster's processes to end", killWait, func() error {
		left, err := inhabitants(names)
		if err != nil {
			return final{err}
		}
		for _, pid := range left {
			killed[pid] = true
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return final{fmt.Errorf("kill process %d: %w", pid, err)}
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("processes %v do not end", left)
		}
		return nil
	})
	return len(killed), err
}

// deleteSpace removes a namespace's name; the kernel destroys the namespace when nobody lives there.
func deleteSpace(name string) error {
	for {
		err := unix.Unmount(nsPath(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // no mount any more; a name may have been mounted more than once
		}
		if err != nil {
			return fmt.Errorf("unmount namespace %s: %w", name, err)
		}
	}
	if err := os.Remove(nsPath(name)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// unmountBelow detaches what is mounted in a folder as the machine sees it, the innermost first. Nodes mount
// in namespaces of their own, so there is something only when that went wrong.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			points = append(points, f[4])
		}
	}
	slices.Reverse(points)
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}
