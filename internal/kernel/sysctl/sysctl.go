// Package sysctl sets kernel parameters of the calling thread's network namespace.
package sysctl

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// root is where the parameters are. A container sees /proc/sys read-only, so one that may set those of
// the network is given the machine's /proc/sys/net at another place and told so with BRAID_PROC_SYS.
var root = cmp.Or(os.Getenv("BRAID_PROC_SYS"), "/proc/sys")

// Forwarding returns the parameter that makes a node route packets of a family.
//
// Turning IPv6 forwarding on also makes the kernel ignore router advertisements on devices with
// accept_ra=1: machines that get their default route that way need accept_ra=2 there.
func Forwarding(is4 bool) string {
	if is4 {
		return "net/ipv4/ip_forward"
	}
	return "net/ipv6/conf/all/forwarding"
}

// Get returns the value of a parameter, named by its path below /proc/sys with slashes (device names
// may hold dots): "net/ipv4/ip_forward".
func Get(name string) (string, error) {
	path := filepath.Join(root, name)
	data, err := read(path)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, &os.PathError{Op: "read", Path: path, Err: err})
	}
	return strings.TrimSpace(string(data)), nil
}

// read reads a file by as few system calls as there can be. Package os makes more than twice as many, to have a file
// of /proc polled, which is a part of what a pod costs.
func read(path string) (data []byte, err error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for buf := make([]byte, 4096); ; {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, buf) })
		if n <= 0 || err != nil {
			return data, err
		}
		data = append(data, buf[:n]...)
	}
}

// write writes the whole value at once, since the kernel reads each write as a value.
func write(path, value string) error {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0) })
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := ignoringEINTR(func() (int, error) { return unix.Write(fd, []byte(value)) }); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// Set gives a parameter a value and reads it back, since the kernel may take a write and keep its
// own mind. A parameter that has the value already is not written: /proc/sys may be read-only where
// somebody else prepared it. It reports whether it wrote.
func Set(name, value string) (changed bool, err error) {
	have, err := Get(name)
	if err != nil || have == value {
		return false, err
	}
	if err := write(filepath.Join(root, name), value); err != nil {
		return false, fmt.Errorf("set sysctl %s to %s (it is %s): %w: run privileged, or set it on the machine with sysctl -w", name, value, have, err)
	}
	if have, err = Get(name); err != nil {
		return true, err
	}
	if have != value {
		return true, fmt.Errorf("sysctl %s is still %s after it was set to %s", name, have, value)
	}
	return true, nil
}

// List returns the names below a folder of parameters, such as the devices in "net/ipv4/conf", sorted.
func List(folder string) (names []string, err error) {
	entries, err := os.ReadDir(filepath.Join(root, folder))
	if err != nil {
		return nil, fmt.Errorf("list sysctls %s: %w", folder, err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}
