package ipt

import (
	"fmt"
	"hash/crc32"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Watch sees changes of the kernel's older tables, those of the legacy tools, which tell nobody: by the
// number, size and entry points of their rules. That costs a system call for each table however many
// rules it has, where reading them (a rule or chain whose absence betrays a flush, say) makes the
// kernel copy the whole table. A rule replaced by another of equal size goes unseen.
type Watch struct {
	More    []string // tables to look at besides those that Tool.Save reads in any case
	sockets []socket
}

// socket asks about the tables of one family.
type socket struct {
	fd, level int
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO, which fills struct ipt_getinfo, the same for both
// families (linux/netfilter_ipv4/ip_tables.h): char name[32], and unsigned int valid_hooks,
// hook_entry[5], underflow[5], num_entries, size.
const getInfo = 64

type info struct {
	name   [32]byte
	fields [13]uint32
}

// numEntries is the place of num_entries among them.
const numEntries = 11

// NewWatch returns a Watch for the families, of the network namespace it is called in. Close it.
func NewWatch(families ...bool) (*Watch, error) {
	w := &Watch{}
	for _, ipv6 := range families {
		domain, level := unix.AF_INET, unix.IPPROTO_IP
		if ipv6 {
			domain, level = unix.AF_INET6, unix.IPPROTO_IPV6
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("open a socket to watch the tables of iptables: %w", err)
		}
		w.sockets = append(w.sockets, socket{fd, level})
	}
	return w, nil
}

// Sum returns a number that another set of rules very likely does not have.
func (w *Watch) Sum() (uint32, error) {
	sum := crc32.NewIEEE()
	for _, s := range w.sockets {
		for _, table := range slices.Concat(tables, optional, w.More) {
			if !slices.Contains(tables, table) && !exists(s.ipv6(), table) {
				continue
			}
			i, err := s.info(table)
			if err != nil {
				return 0, err
			}
			fmt.Fprintln(sum, table, i.fields)
		}
	}
	return sum.Sum32(), nil
}

// Table is Sum for one table of one family alone; false when the kernel has not made it, which nobody's tool has used then.
func (w *Watch) Table(ipv6 bool, table string) (number uint32, there bool, err error) {
	for _, s := range w.sockets {
		if s.ipv6() != ipv6 || !exists(ipv6, table) {
			continue
		}
		i, err := s.info(table)
		if err != nil {
			return 0, false, err
		}
		return crc32.ChecksumIEEE(fmt.Append(nil, i.fields)), true, nil
	}
	return 0, false, nil
}

// Entries counts what a table of one family consists of: its rules, two entries for each chain that somebody made, and
// few besides. It fails for a family that is not watched.
func (w *Watch) Entries(ipv6 bool, table string) (int, error) {
	for _, s := range w.sockets {
		if s.ipv6() == ipv6 {
			i, err := s.info(table)
			return int(i.fields[numEntries]), err
		}
	}
	return 0, fmt.Errorf("the iptables table %s is not watched", table)
}

func (s socket) ipv6() bool { return s.level == unix.IPPROTO_IPV6 }

func (s socket) info(table string) (i info, err error) {
	copy(i.name[:], table)
	size := uint32(unsafe.Sizeof(i))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), uintptr(s.level), getInfo,
		uintptr(unsafe.Pointer(&i)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return i, fmt.Errorf("ask the kernel about the iptables table %s: %w", table, errno)
	}
	return i, nil
}

// Close gives up the sockets.
func (w *Watch) Close() {
	for _, s := range w.sockets {
		_ = unix.Close(s.fd)
	}
}
