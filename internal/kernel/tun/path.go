package tun

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/desired"
)

// maxQueues bounds queues and sockets: one for each CPU, up to this.
const maxQueues = 8

// Options change how a path works; zero values are what nodes use.
type Options struct {
	Queues int      // 0 = one for each CPU that Go uses, up to maxQueues
	Off    Features // not to be used though the kernel has them
}

// Path is the data path of one relay at work.
type Path struct {
	relay    desired.Relay // device, port and addresses
	table    atomic.Pointer[table]
	features atomic.Uint32
	counters counters
	icmp     limiter
	now      func() time.Time

	files  []*os.File
	probes [2]*os.File // sockets to ask for the MTU of a way, by family
	probe  sync.Mutex
	wg     sync.WaitGroup
	once   sync.Once
	broken chan struct{}
	err    error
}

// Open makes the device of a relay when it is not there, attaches to it and starts to carry packets. The
// device is left as it is otherwise: down, without addresses. Everything is opened in the network
// namespace of the calling thread. Errors that wrap ErrOther say that the device is somebody else's.
func Open(r desired.Relay, o Options) (*Path, error) {
	p := &Path{relay: r, now: time.Now, broken: make(chan struct{})}
	if err := p.Set(r); err != nil {
		return nil, err
	}
	if err := p.open(o); err != nil {
		p.close()
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	return p, nil
}

func (p *Path) open(o Options) error {
	f := allFeatures &^ o.Off
	queues := o.Queues
	if queues == 0 {
		queues = min(runtime.GOMAXPROCS(0), maxQueues)
	}
	if f&MultiQueue == 0 {
		queues = 1
	}
	var workers []func() error
	for i := range queues {
		tun, err := queue(p.relay.Dev, f)
		if err != nil {
			return err
		}
		p.files = append(p.files, tun)
		if i == 0 {
			if f, err = offload(tun, f); err != nil {
				return err
			}
		}
		more, err := p.workers(tun, &f)
		if err != nil {
			return err
		}
		workers = append(workers, more...)
	}
	if err := p.openProbes(); err != nil {
		return err
	}
	for _, run := range workers {
		p.wg.Go(func() { p.end(run()) })
	}
	return nil
}

// workers opens the sockets that go with a queue and returns what is to be run for it.
func (p *Path) workers(tun *os.File, f *Features) (run []func() error, err error) {
	var socks [2]*os.File
	for _, a := range p.relay.Local {
		s, err := listen(netip.AddrPortFrom(a, p.relay.Port), f)
		if err != nil {
			return nil, err
		}
		p.files, socks[family(a.Is4())] = append(p.files, s), s
	}
	p.features.Store(uint32(*f))
	for _, s := range socks {
		if s == nil {
			continue
		}
		r, err := newReceiver(p, s, tun)
		if err != nil {
			return nil, err
		}
		run = append(run, r.run)
	}
	s, err := newSender(p, tun, socks)
	if err != nil {
		return nil, err
	}
	return append(run, s.run), nil
}

func (p *Path) openProbes() error {
	for i, af := range []int{unix.AF_INET6, unix.AF_INET} {
		fd, err := unix.Socket(af, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		switch {
		case errors.Is(err, unix.EAFNOSUPPORT):
			continue // a kernel without this family
		case err != nil:
			return fmt.Errorf("open a UDP socket: %w", err)
		}
		p.probes[i] = os.NewFile(uintptr(fd), "probe")
		p.files = append(p.files, p.probes[i])
	}
	return nil
}

// Set changes where packets go and whose are taken, without a packet lost. The relay has to have the
// same ends (desired.Relay.SameEnds) as the one that was opened.
func (p *Path) Set(r desired.Relay) error {
	if !p.relay.SameEnds(r) {
		return fmt.Errorf("%s: it has other ends than %s", r, p.relay)
	}
	t, err := newTable(r, p.table.Load())
	if err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	p.table.Store(t)
	return nil
}

// end notes that a worker has stopped, and why when it is the first.
func (p *Path) end(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.broken)
	})
}

// Broken is closed when the path has stopped to carry packets: the device was deleted.
func (p *Path) Broken() <-chan struct{} { return p.broken }

// Err says why the path is broken; nil while it is not.
func (p *Path) Err() error {
	select {
	case <-p.broken:
		return p.err
	default:
		return nil
	}
}

// Close stops the path. The device stays, and what is routed to it is lost until it is opened again.
func (p *Path) Close() { p.close() }

func (p *Path) close() {
	p.end(os.ErrClosed)
	for _, f := range p.files {
		_ = f.Close() // wakes the workers
	}
	p.wg.Wait()
}

// Features are the means that are in use: what the kernel has, less what turned out not to work.
func (p *Path) Features() Features { return Features(p.features.Load()) }

// drop notes that a feature does not work here.
func (p *Path) drop(f Features) { p.features.And(^uint32(f)) }

// room is the largest packet that the way to a node carries, in bytes, or 0 when that is not known.
func (p *Path) room(to *hop) int {
	p.probe.Lock()
	defer p.probe.Unlock()
	is4 := to.addr.Is4()
	probe := p.probes[family(is4)]
	if probe == nil {
		return 0
	}
	mtu := 0
	err := control(probe, func(fd int) { mtu, _ = pathMTU(fd, netip.AddrPortFrom(to.addr, p.relay.Port)) })
	if err != nil || mtu == 0 {
		return 0
	}
	if is4 {
		return mtu - ipv4Len - udpLen
	}
	return mtu - ipv6Len - udpLen
}
