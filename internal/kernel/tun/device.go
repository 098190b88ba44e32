// Package tun carries packets between the kernel's routes and other nodes in user space: what is routed
// to a TUN device goes to the node that has the destination, one IP packet in one UDP datagram with
// nothing before it, which is the wire format of flannel's udp backend.
//
// It moves up to 64 KB per system call. The kernel hands TCP and UDP data over in packets that stand for
// many segments (IFF_VNET_HDR, TUNSETOFFLOAD), whose headers are made here; the datagrams of one peer
// and size leave in one message (UDP_SEGMENT) and come in one (UDP_GRO), and what comes is merged
// before it is handed to the kernel. Where a kernel lacks one of these the others go on.
package tun

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Features are the means of speed that a kernel may lack.
type Features uint8

const (
	MultiQueue  Features = 1 << iota // several queues on the device (Linux 3.8)
	SplitTCP                         // the kernel hands over TCP data unsegmented
	SplitUDP                         // the same for UDP (Linux 6.2)
	SendGroups                       // UDP_SEGMENT (Linux 4.18)
	RecvGroups                       // UDP_GRO (Linux 5.0)
	MergeTCP                         // packets are merged for the kernel
	MergeUDP                         // the same for UDP (Linux 6.2, as SplitUDP)
	PartialSums                      // checksums inside are left to the outer one between nodes that agree, see hello
	allFeatures = 1<<iota - 1
)

var featureNames = []string{"multi-queue", "split-tcp", "split-udp", "send-groups", "receive-groups", "merge-tcp", "merge-udp", "partial-checksums"}

// String lists the features by name.
func (f Features) String() string {
	var out []string
	for i, name := range featureNames {
		if f&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, " ")
}

// clonePath is the device that makes TUN devices.
const clonePath = "/dev/net/tun"

// ErrOther says that there is a device of the wanted name that was made otherwise.
var ErrOther = errors.New("the device is of another kind")

// queue opens one queue of a device, which is made when it is not there, in the network namespace of the
// calling thread. The device stays when the last queue is closed: its addresses and routes outlive us.
func queue(name string, f Features) (*os.File, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("open %s: %w: load the kernel's module (modprobe tun), and let the agent's container have the file", clonePath, err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w: the agent needs this file", clonePath, err)
	}
	if err := attach(fd, name, f); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), clonePath), nil
}

func attach(fd int, name string, f Features) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if f&MultiQueue != 0 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	switch {
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w (%w): remove it (ip link delete %s) or rename it", ErrOther, err, name)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("attach: %w: it needs the capability NET_ADMIN", err)
	case err != nil:
		return fmt.Errorf("attach: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make it persistent: %w", err)
	}
	return nil
}

// offload tells the kernel what it need not do for us, and returns the features that it takes up.
func offload(tun *os.File, f Features) (Features, error) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	const udp = unix.TUN_F_USO4 | unix.TUN_F_USO6
	set := func(flags int) (err error) {
		if e := control(tun, func(fd int) { err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) }); e != nil {
			return e
		}
		return err
	}
	if set(tcp|udp) != nil { // the kernel knows no UDP, so it takes no such packets either
		f &^= SplitUDP | MergeUDP
	}
	for {
		flags := 0
		if f&(SplitTCP|SplitUDP) != 0 {
			flags |= unix.TUN_F_CSUM // the others need it
		}
		if f&SplitTCP != 0 {
			flags |= tcp
		}
		if f&SplitUDP != 0 {
			flags |= udp
		}
		switch err := set(flags); {
		case err == nil:
			return f, nil
		case f&SplitUDP != 0:
			f &^= SplitUDP | MergeUDP
		case f&SplitTCP != 0:
			f &^= SplitTCP
		default:
			return f, fmt.Errorf("switch offloads off: %w", err)
		}
	}
}

// control runs fn on the descriptor of a file that the runtime's poller keeps.
func control(file *os.File, fn func(fd int)) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Control(func(fd uintptr) { fn(int(fd)) })
}
