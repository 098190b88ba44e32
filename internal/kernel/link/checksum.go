package link

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kernels before 5.7.1 send packets in VXLAN whose addresses were replaced, as those to a service from the node itself are, with a
// wrong checksum outside when the device leaves checksums to the network card; the receiver drops them, and a connection
// takes 63 seconds (kubernetes/kubernetes#88986). There the device has to make them itself. Newer patches of some
// series have the fix.
var checksumFixed = map[[2]int]int{{5, 7}: 1, {5, 6}: 13, {5, 4}: 41, {4, 19}: 123, {4, 14}: 181} // series → first patch with it

// checksumBug tells from the kernel's release, as uname prints it ("5.4.0-190-generic"), whether it has the fault. What cannot be
// read is taken for a new one.
func checksumBug(release string) bool {
	var version [3]int
	for i, part := range strings.SplitN(release, ".", 3) {
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			part = part[:end]
		}
		n, err := strconv.Atoi(part)
		if err != nil {
			return false
		}
		version[i] = n
	}
	major, minor := version[0], version[1]
	if fixed, ok := checksumFixed[[2]int{major, minor}]; ok {
		return version[2] < fixed
	}
	return major < 5 || major == 5 && minor < 7
}

// checksumsBroken tells whether the running kernel has the fault.
var checksumsBroken = sync.OnceValue(func() bool {
	var u unix.Utsname
	return unix.Uname(&u) == nil && checksumBug(unix.ByteSliceToString(u.Release[:]))
})

// checksumOffload reads (set nil) or sets whether a device of the calling thread's namespace leaves checksums of what it sends to
// the hardware: ETHTOOL_GTXCSUM and ETHTOOL_STXCSUM (linux/ethtool.h), what `ethtool -K DEVICE tx` sets.
func checksumOffload(dev string, set *bool) (on bool, err error) {
	const get, put = 0x16, 0x17
	value := struct{ cmd, data uint32 }{cmd: get}
	if set != nil {
		value.cmd = put
		if *set {
			value.data = 1
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // struct ifreq is larger
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return false, fmt.Errorf("checksum offload of device %s: %w", dev, errno)
	}
	return value.data != 0, nil
}

// makeChecksums has a VXLAN device make checksums itself where the kernel needs that, and says so if it did not.
func makeChecksums(dev string) ([]string, error) {
	if !checksumsBroken() {
		return nil, nil
	}
	on, err := checksumOffload(dev, nil)
	if err != nil || !on {
		return nil, err
	}
	off := false
	if _, err := checksumOffload(dev, &off); err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("switched checksum offload of device %s off: this kernel is older than 5.7.1", dev)}, nil
}
