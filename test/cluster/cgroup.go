package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where machines mount their hierarchies: the one of version 2, or the many of version 1.
const cgroupRoot = "/sys/fs/cgroup"

// hierarchies lists the mount points of cgroup hierarchies: those below /sys, or the others.
func hierarchies(below bool) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		mount, kind, _ := strings.Cut(line, " - ")
		f := strings.Fields(mount)
		if len(f) > 4 && strings.HasPrefix(kind, "cgroup") && strings.HasPrefix(f[4], "/sys/") == below {
			out = append(out, f[4])
		}
	}
	return out, nil
}

// joinCgroup moves the calling process into a place's cgroup in every hierarchy, and its thread into a cgroup
// namespace that begins there: to everything in the place it is the root. Containerd makes the cgroups of
// containers below that, since a kubelet without cgroups per QoS names none.
func joinCgroup(group string) error {
	all, err := hierarchies(true)
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := h
		for _, part := range strings.Split(strings.Trim(group, "/"), "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
				return err
			}
			if err := inheritCPUs(parent, dir); err != nil {
				return fmt.Errorf("give cgroup %s its processors: %w", dir, err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("join cgroup %s: %w", dir, err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	return nil
}

// inheritCPUs copies the processors and memory nodes of a cgroup of version 1: nobody may join one that has
// none, as a new one has.
func inheritCPUs(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if os.IsNotExist(err) || err == nil && strings.TrimSpace(string(have)) != "" {
			continue
		}
		if err != nil {
			return err
		}
		data, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if len(strings.TrimSpace(string(data))) == 0 {
			continue // version 2, where empty means those of the parent
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// cgroupMounts replace the machine's hierarchies below a new /sys by their parts that belong to the place.
// before runs while the old ones are visible, after when the new /sys is there. aside is a folder to keep
// them in meanwhile.
func cgroupMounts(group, aside string) (before, after []mount, err error) {
	all, err := hierarchies(true)
	if err != nil {
		return nil, nil, err
	}
	if len(all) != 1 || all[0] != cgroupRoot {
		after = append(after, mount{source: "tmpfs", target: cgroupRoot, kind: "tmpfs", data: "mode=755"})
	}
	for _, h := range all {
		rel, err := filepath.Rel(cgroupRoot, h)
		if err != nil {
			return nil, nil, err
		}
		keep := filepath.Join(aside, rel)
		before = append(before, mount{source: filepath.Join(h, group), target: keep, flags: unix.MS_BIND, mkdir: true})
		after = append(after, mount{source: keep, target: h, flags: unix.MS_BIND, mkdir: true}, mount{target: keep, unmount: true})
	}
	return before, append(after, links(cgroupRoot)...), nil
}

// links are the symbolic links in a folder, such as cpu → cpu,cpuacct, to be made again.
func links(dir string) []mount {
	var out []mount
	entries, _ := os.ReadDir(dir) // absent on a machine of version 2 alone, which has no such links
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(path); err == nil {
			out = append(out, mount{source: to, target: path, link: true})
		}
	}
	return out
}

// removeCgroups removes the cluster's cgroup from every hierarchy.
func removeCgroups(group string) error {
	all, err := hierarchies(true)
	for _, h := range all {
		err = errors.Join(err, removeCgroup(filepath.Join(h, group)))
	}
	return err
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// Its processes are dead, but the kernel may not have let go of the last.
	return await(context.Background(), "cgroup "+dir+" to empty", killWait, func() error { return unix.Rmdir(dir) })
}
