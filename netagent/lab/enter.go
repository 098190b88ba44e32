package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// entry says where a program of the lab runs and what it sees there.
type entry struct {
	netns    string            // handle of the network namespace; empty = the caller's
	hostname string            // empty = the caller's
	binds    map[string]string // file to show → path to show it at, in a private mount namespace
	argv     []string
	env      []string
}

// enter turns the calling process into e.argv inside the entry's namespaces. It returns only when
// that failed. The process keeps its pid, terminal and signals, so its exit code is the program's.
func (e *entry) enter() error {
	program, err := exec.LookPath(e.argv[0])
	if err != nil {
		return fmt.Errorf("%s: not found in PATH", e.argv[0])
	}
	// execve turns this thread into the process, with the namespaces this thread has.
	runtime.LockOSThread()
	if e.netns != "" {
		ns, err := unix.Open(e.netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("enter %s: %w", e.netns, err)
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", e.netns, err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make a private mount namespace: %w (needs root)", err)
	}
	if e.hostname != "" {
		if err := unix.Sethostname([]byte(e.hostname)); err != nil {
			return fmt.Errorf("set host name %s: %w", e.hostname, err)
		}
	}
	if err := e.mounts(); err != nil {
		return err
	}
	err = syscall.Exec(program, e.argv, e.env)
	return fmt.Errorf("run %s: %w", program, err)
}

// mounts gives the private mount namespace the entry's files.
func (e *entry) mounts() error {
	// Nothing mounted here may show on the machine; what the machine unmounts goes away here too.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The copies of namespace handles would keep a namespace alive after the lab removed its own.
	if err := dropHandles(); err != nil {
		return err
	}
	ownSys()
	for file, at := range e.binds {
		if err := showAt(file, at); err != nil {
			return err
		}
	}
	return nil
}

// ownSys makes /sys/class/net show the links of the namespace: a sysfs shows those of the namespace
// it was mounted in. The machine's control groups stay in sight, to be read only, since programs
// read from them how many processors they have. Where a mount is not allowed (some containers) the
// caller's /sys stays: nothing of the lab reads it.
func ownSys() {
	const cgroups = "/sys/fs/cgroup"
	tree, treeErr := unix.OpenTree(unix.AT_FDCWD, cgroups, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if treeErr == nil {
		defer unix.Close(tree)
		_ = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, "")
	if err == nil && treeErr == nil {
		_ = unix.MoveMount(tree, "", unix.AT_FDCWD, cgroups, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
}

// showAt makes path at show a file. Where the machine's path leads nowhere (a link to a resolver
// that is not installed) there is nothing to mount on, and the message says so.
func showAt(file, at string) error {
	target, err := filepath.EvalSymlinks(at)
	if err != nil {
		return fmt.Errorf("%s of this machine leads nowhere, so the lab's cannot be shown there: %w (create it, also empty)", at, err)
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s at %s: %w", file, at, err)
	}
	return nil
}

func dropHandles() error {
	handles, err := namespaceHandles()
	if err != nil {
		return err
	}
	for _, h := range handles {
		if strings.HasPrefix(h, nsPrefix) {
			_ = unix.Unmount(nsPath(h), unix.MNT_DETACH) // not a mount: nothing to drop
		}
	}
	return nil
}

// nsswitch is what name lookups in the lab go by: files, then DNS. Other sources of the machine
// (a resolver daemon, mDNS) would answer from outside the lab.
func nsswitch(machine []byte) []byte {
	lines := strings.Split(strings.TrimSuffix(string(machine), "\n"), "\n")
	found := false
	for i, l := range lines {
		if strings.HasPrefix(strings.TrimSpace(l), "hosts:") {
			lines[i], found = "hosts: files dns", true
		}
	}
	if !found {
		lines = append(lines, "hosts: files dns")
	}
	return []byte(strings.Join(lines, "\n") + "\n")
}

const nsswitchPath = "/etc/nsswitch.conf"

// writeNsswitch writes the lab's nsswitch.conf, unless the machine has none: then the C library's
// defaults hold, which are what the lab wants.
func writeNsswitch(p paths) error {
	machine, err := os.ReadFile(nsswitchPath)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return writeFile(p.nsswitch(), nsswitch(machine))
}

// etc returns the binds that show the lab's resolv.conf, hosts (may be empty) and nsswitch.conf.
func (p paths) etc(resolv, hosts string) map[string]string {
	binds := map[string]string{resolv: "/etc/resolv.conf"}
	if hosts != "" {
		binds[hosts] = "/etc/hosts"
	}
	if _, err := os.Stat(p.nsswitch()); err == nil {
		binds[p.nsswitch()] = nsswitchPath
	}
	return binds
}

// command is the command line that makes this same program enter e as a process of its own.
func (e *entry) command(self string) *exec.Cmd {
	args := []string{"lab", "spawn", "--netns", e.netns, "--hostname", e.hostname}
	for file, at := range e.binds {
		args = append(args, "--bind", file+":"+at)
	}
	c := exec.Command(self, append(append(args, "--"), e.argv...)...)
	c.Env = e.env
	return c
}
