package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// switchOff takes a feature from a device of the calling thread's namespace, as ethtool -K does: the
// kernel's list of names says which bit it is (ETHTOOL_GSTRINGS, ETHTOOL_SFEATURES).
func switchOff(dev, feature string) error {
	const names, size = 4, 32 // ETH_SS_FEATURES, ETH_GSTRING_LEN
	var strings struct {
		cmd, set, n uint32
		text        [128][size]byte
	}
	strings.cmd, strings.set = unix.ETHTOOL_GSTRINGS, names // n 0: however many there are
	if err := ethtool(dev, unsafe.Pointer(&strings)); err != nil {
		return err
	}
	for i := range min(int(strings.n), len(strings.text)) {
		if unix.ByteSliceToString(strings.text[i][:]) != feature {
			continue
		}
		var set struct {
			cmd, blocks uint32
			block       [4]struct{ valid, want uint32 }
		}
		set.cmd, set.blocks = unix.ETHTOOL_SFEATURES, (strings.n+31)/32
		set.block[i/32].valid = 1 << (i % 32)
		return ethtool(dev, unsafe.Pointer(&set))
	}
	return fmt.Errorf("device %s: the kernel knows no feature %s", dev, feature)
}

func ethtool(dev string, data unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:], dev)
	req.data = data
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("device %s: ethtool: %w", dev, errno)
	}
	return nil
}
