package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/braidnet/braid/internal/kernel/conntrack"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/model"
)

const (
	flowPort     = 12345 // the source port that clients keep
	flowNodePort = 30053
)

// flowLab is a node with services in the kernel, and clients whose UDP flows go through them.
type flowLab struct {
	*dpLab
	*services
	mode  string
	store *model.Store
}

func newFlowLab(t *testing.T, mode string) *flowLab {
	t.Helper()
	l := &flowLab{dpLab: newDPLab(t), mode: mode, store: model.NewStore()}
	l.start(t)
	return l
}

// start runs a new agent's services over what is in the store and the kernel.
func (l *flowLab) start(t *testing.T) {
	t.Helper()
	l.node.Run(t, func() (err error) {
		l.services, err = newTestServices(Config{Node: "n1", ServiceMode: l.mode, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	s := l.services
	t.Cleanup(s.close)
	l.store.Subscribe(func(rev uint64, changes []model.Change) { s.planner.Apply(rev, changes); s.ledger.note(rev, changes) })
	l.sync(t)
}

// sync brings the kernel to the state of the store, then ends stale flows, as the two loops do.
func (l *flowLab) sync(t *testing.T) {
	t.Helper()
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := l.services.step(ctx); return err },
		func(ctx context.Context) error { _, err := l.flows.step(ctx); return err },
	} {
		l.node.Run(t, func() error { return step(t.Context()) })
	}
}

func (l *flowLab) apply(t *testing.T, u ...model.Update) {
	t.Helper()
	l.store.Apply(u)
	l.sync(t)
}

// from sends one datagram from a port that the client keeps, and returns who answered.
func (h *dpHost) from(port int, to netip.AddrPort, patience time.Duration) (name string, err error) {
	var c net.Conn
	err = h.Do(func() (err error) {
		c, err = (&net.Dialer{LocalAddr: &net.UDPAddr{Port: port}}).Dial("udp", to.String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	name, _, _ = strings.Cut(string(buf[:n]), " ")
	return name, err
}

// flowClients are those who send through a service: a host outside, and the node itself.
func (l *flowLab) clients(a *dpAddrs) map[string]func(patience time.Duration) (string, error) {
	via := func(h *dpHost, port int, to netip.AddrPort) func(time.Duration) (string, error) {
		return func(patience time.Duration) (string, error) { return h.from(port, to, patience) }
	}
	return map[string]func(time.Duration) (string, error){
		"outside to the cluster IP": via(l.client, flowPort, netip.AddrPortFrom(a.udp, dpPort)),
		"outside to the node port":  via(l.client, flowPort, netip.AddrPortFrom(a.node, flowNodePort)),
		"node to the cluster IP":    via(l.node, flowPort, netip.AddrPortFrom(a.udp, dpPort)),
		"pod to the cluster IP":     via(l.pod1, flowPort, netip.AddrPortFrom(a.udp, dpPort)),
	}
}

// want sends as every client and wants these to answer.
func (l *flowLab) want(t *testing.T, when, name string) {
	t.Helper()
	for i := range dpFamilies {
		for who, send := range l.clients(&dpFamilies[i]) {
			if got, err := send(patience); err != nil || got != name {
				t.Errorf("%s, %s, %s: %q answered, %v; want %s", when, dpFamilies[i].family, who, got, err, name)
			}
		}
	}
}

func (l *flowLab) service(change func(*model.Service)) model.Update {
	s := &model.Service{Origin: portsObject(model.KindService, "dns"), Type: model.NodePort,
		Ports: []model.ServicePort{{Protocol: model.UDP, Port: dpPort, NodePort: flowNodePort}}}
	for _, a := range dpFamilies {
		s.ClusterIPs = append(s.ClusterIPs, a.udp)
	}
	if change != nil {
		change(s)
	}
	return model.Set(s)
}

// backends are the slices of the service: pods by name and state, of r(eady), t(erminating but
// serving), and e(nding): neither.
func (l *flowLab) backends(pods map[string]string) (u []model.Update) {
	for i := range dpFamilies {
		a := &dpFamilies[i]
		s := portsSlice("dns-"+a.family, "dns", a.any.Is6())
		s.Ports = []model.EndpointPort{{Protocol: model.UDP, Port: dpTarget}}
		for pod, state := range pods {
			addr := map[string]netip.Addr{"pod1": a.pod1, "pod2": a.pod2}[pod]
			s.Endpoints = append(s.Endpoints, model.Endpoint{Addrs: []netip.Addr{addr}, Node: map[string]string{"pod1": "n1", "pod2": "n2"}[pod],
				Ready: state == "r", Serving: state != "e", Terminating: state != "r"})
		}
		u = append(u, model.Set(s))
	}
	return u
}

func flowNodes() (u []model.Update) {
	for _, n := range []string{"n1", "n2"} {
		node := nodeNamed(n)
		for _, a := range dpFamilies {
			node.PodCIDRs = append(node.PodCIDRs, map[string]netip.Prefix{"n1": a.localPods, "n2": a.otherPods}[n])
		}
		u = append(u, model.Set(node))
	}
	return u
}

// tracked counts entries of a protocol to a destination.
func (l *flowLab) tracked(t *testing.T, protocol model.Protocol, dst netip.AddrPort) (n int) {
	t.Helper()
	l.node.Run(t, func() error {
		c, err := conntrack.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Delete(conntrack.Filter{IPv6: dst.Addr().Is6(), Protocol: uint8(protocol)}, func(f conntrack.Flow) bool {
			if f.Dst == dst {
				n++
			}
			return false
		})
		return err
	})
	return n
}

func TestClientsThatKeepTheirPortFollowTheService(t *testing.T) {
	for mode := range testedPlanes {
		t.Run(mode, func(t *testing.T) {
			l := newFlowLab(t, mode)
			l.apply(t, flowNodes()...)
			others := l.otherFlows(t)
			for i := range dpFamilies { // before there is a service: flows without translation
				for _, send := range l.clients(&dpFamilies[i]) {
					_, _ = send(silence / 10)
				}
			}
			l.apply(t, l.service(nil))
			l.apply(t, l.backends(map[string]string{"pod1": "e"})...)
			l.apply(t, l.backends(map[string]string{"pod1": "r"})...)
			l.want(t, "the first endpoint is ready", "pod1")
			l.apply(t, l.backends(map[string]string{"pod1": "r", "pod2": "r"})...)
			l.want(t, "a second endpoint came", "pod1")
			l.apply(t, l.backends(map[string]string{"pod1": "t", "pod2": "r"})...)
			l.want(t, "the endpoint terminates but serves", "pod1")
			l.apply(t, l.backends(map[string]string{"pod1": "e", "pod2": "r"})...)
			l.want(t, "the endpoint serves no more", "pod2")
			l.apply(t, l.backends(map[string]string{"pod1": "r"})...)
			l.want(t, "the pod was replaced", "pod1")
			l.apply(t, l.backends(nil)...)
			l.wantRefused(t)
			l.apply(t, l.backends(map[string]string{"pod2": "r"})...)
			l.want(t, "an endpoint came again", "pod2")
			l.apply(t, l.service(nil), model.Delete(l.service(nil).Ref))
			for i := range dpFamilies {
				a := &dpFamilies[i]
				for _, to := range []netip.AddrPort{netip.AddrPortFrom(a.udp, dpPort), netip.AddrPortFrom(a.node, flowNodePort)} {
					if n := l.tracked(t, model.UDP, to); n != 0 {
						t.Errorf("%d flows to %s after its service went", n, to)
					}
				}
			}
			others()
		})
	}
}

// TestFlowsToBackendsThatCameSinceGoOn: the table is read some time after a backend left, for the sake of what
// reading costs, and until then others may come.
func TestFlowsToBackendsThatCameSinceGoOn(t *testing.T) {
	l := newFlowLab(t, "nftables")
	l.apply(t, append(flowNodes(), l.service(nil))...)
	both := map[string]string{"pod1": "r", "pod2": "r"}
	l.apply(t, l.backends(both)...)
	for _, pods := range []map[string]string{{"pod2": "r"}, both} {
		l.store.Apply(l.backends(pods))
		l.node.Run(t, func() error { _, err := l.services.step(t.Context()); return err })
	}
	const flows = 20
	for i := range dpFamilies {
		to := netip.AddrPortFrom(dpFamilies[i].udp, dpPort)
		answered := map[string]int{}
		for n := range flows {
			name, err := l.client.from(flowPort+n, to, patience)
			if err != nil {
				t.Fatal(err)
			}
			answered[name]++
		}
		if len(answered) != 2 {
			t.Fatalf("answered by %v, want both pods", answered)
		}
	}
	l.sync(t)
	for i := range dpFamilies {
		if n := l.tracked(t, model.UDP, netip.AddrPortFrom(dpFamilies[i].udp, dpPort)); n != flows {
			t.Errorf("%s: %d flows go on, want %d", dpFamilies[i].family, n, flows)
		}
	}
}

// wantRefused: at zero endpoints, what was translated must not go on into nowhere.
func (l *flowLab) wantRefused(t *testing.T) {
	t.Helper()
	for i := range dpFamilies {
		for who, send := range l.clients(&dpFamilies[i]) {
			// The kernel sends so many ICMP errors a second and no more; on the node itself the call fails.
			nstest.Wait(t, "a refusal, "+who, func() error {
				got, err := send(silence)
				if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPERM) {
					return nil
				}
				return fmt.Errorf("%q answered, %w", got, err)
			})
		}
	}
}

// otherFlows makes flows that are none of the service's, and returns the check that they are left.
func (l *flowLab) otherFlows(t *testing.T) (check func()) {
	t.Helper()
	var all []netip.AddrPort
	for i := range dpFamilies {
		a := &dpFamilies[i]
		to := netip.AddrPortFrom(a.pod2, dpTarget)
		elsewhere := netip.AddrPortFrom(a.pod2, flowNodePort) // a node port is one on the node's addresses only
		if _, err := l.client.from(flowPort+1, to, patience); err != nil {
			t.Fatal(err)
		}
		if _, err := l.client.get(to); err != nil {
			t.Fatal(err)
		}
		_, _ = l.client.from(flowPort+1, elsewhere, silence/10)
		all = append(all, to, elsewhere)
	}
	return func() {
		for i, to := range all {
			if n := l.tracked(t, model.UDP, to); n != 1 {
				t.Errorf("%d flows to %s are left, want 1", n, to)
			}
			if n := l.tracked(t, model.TCP, to); i%2 == 0 && n == 0 {
				t.Errorf("a TCP connection to %s was cut off", to)
			}
		}
	}
}

func TestFlowsOfTheTimeWithoutAgentEnd(t *testing.T) {
	l := newFlowLab(t, "nftables")
	l.apply(t, flowNodes()...)
	l.apply(t, append(l.backends(map[string]string{"pod1": "r"}), l.service(nil))...)
	l.want(t, "at first", "pod1")
	l.services.close()
	l.store.Apply(l.backends(map[string]string{"pod2": "r"}))
	l.start(t)
	l.want(t, "endpoints changed while no agent ran", "pod2")
	l.services.close()
	l.store.Apply([]model.Update{model.Delete(l.service(nil).Ref)})
	l.start(t)
	for i := range dpFamilies {
		to := netip.AddrPortFrom(dpFamilies[i].udp, dpPort)
		if n := l.tracked(t, model.UDP, to); n != 0 {
			t.Errorf("%d flows to %s, whose service went while no agent ran", n, to)
		}
		for _, send := range l.clients(&dpFamilies[i]) {
			_, _ = send(silence / 10)
		}
	}
	l.services.close()
	l.store.Apply(append(l.backends(nil), l.service(nil)))
	l.start(t)
	l.wantRefused(t) // what was sent before there was a service has no translation to end
}

// TestFlowsPastTheServicesEndWithTheRepair: while rules were away the kernel let flows go on untranslated, and
// would for as long as a client sends.
func TestFlowsPastTheServicesEndWithTheRepair(t *testing.T) {
	for mode, harm := range map[string]string{
		"nftables": "for f in ip ip6; do nft flush map $f braid frontends; nft flush map $f braid node-frontends; nft flush set $f braid cluster-ips; done",
		"iptables": "for t in iptables-nft ip6tables-nft; do $t -t nat -F; $t -F BRAID-CLUSTERIPS; done",
	} {
		t.Run(mode, func(t *testing.T) {
			l := newFlowLab(t, mode)
			l.apply(t, append(flowNodes(), l.service(func(s *model.Service) {
				s.Ports = append(s.Ports, model.ServicePort{Name: "tcp", Protocol: model.TCP, Port: dpPort})
			}))...)
			backends := l.backends(map[string]string{"pod1": "r"})
			for _, b := range backends {
				slice := b.Object.(*model.EndpointSlice)
				slice.Ports = append(slice.Ports, model.EndpointPort{Name: "tcp", Protocol: model.TCP, Port: dpTarget})
			}
			l.apply(t, backends...)
			if l.services.rules == nil {
				t.Skip("the iptables of this machine do not keep their rules in nftables")
			}
			l.node.Exec(t, "sh", "-c", harm)
			for i := range dpFamilies {
				for who, send := range l.clients(&dpFamilies[i]) {
					if name, err := send(200 * time.Millisecond); err == nil {
						t.Errorf("%s is answered by %s without rules", who, name)
					}
				}
			}
			web := netip.AddrPortFrom(dpFamilies[0].udp, dpPort)
			if _, err := l.client.exchange("tcp", web, silence/10); err == nil || l.tracked(t, model.TCP, web) == 0 {
				t.Errorf("%s is reached without rules, or not tracked: %v", web, err)
			}
			l.took = 0 // repairs are not put off
			l.sync(t)
			l.want(t, "after the repair", "pod1")
			if n := l.tracked(t, model.TCP, web); n != 0 {
				t.Errorf("%d TCP flows to %s went past it and go on", n, web)
			}
		})
	}
}

// TestTableIsReadOnlyWhenSomethingLeft: reading a large table costs, and most events need none of it.
func TestTableIsReadOnlyWhenSomethingLeft(t *testing.T) {
	l := newFlowLab(t, "nftables")
	reads := func() float64 {
		r := newRegistry(l.metrics)
		return gathered(t, r)[`kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv4"}`]
	}
	tcp := func(s *model.Service) { s.Ports[0].Protocol = model.TCP }
	tcpSlice := func(pods map[string]string) []model.Update {
		u := l.backends(pods)
		for i := range u {
			u[i].Object.(*model.EndpointSlice).Ports[0].Protocol = model.TCP
		}
		return u
	}
	l.apply(t, l.service(tcp))
	l.apply(t, tcpSlice(map[string]string{"pod1": "r"})...)
	before := reads()
	for _, pods := range []map[string]string{{"pod2": "r"}, nil, {"pod1": "r", "pod2": "r"}} {
		l.apply(t, tcpSlice(pods)...)
	}
	l.apply(t, model.Delete(l.service(nil).Ref))
	if n := reads() - before; n != 0 {
		t.Errorf("%v reads for changes of TCP services", n)
	}
	for _, step := range []struct {
		what string
		want float64
		u    []model.Update
	}{
		{"a service without endpoints", 0, append(l.backends(nil), l.service(nil))},
		{"an endpoint that is not ready", 0, l.backends(map[string]string{"pod1": "e"})},
		{"the first endpoint", 1, l.backends(map[string]string{"pod1": "r"})},
		{"a second endpoint", 0, l.backends(map[string]string{"pod1": "r", "pod2": "r"})},
		{"one terminates", 0, l.backends(map[string]string{"pod1": "t", "pod2": "r"})},
		{"one leaves", 1, l.backends(map[string]string{"pod2": "r"})},
		{"a traffic policy", 0, []model.Update{l.service(func(s *model.Service) { s.InternalLocal = true })}},
		{"the service goes", 1, []model.Update{model.Delete(l.service(nil).Ref)}},
	} {
		before := reads()
		l.apply(t, step.u...)
		if n := reads() - before; n != step.want {
			t.Errorf("%s: the table was read %v times, want %v", step.what, n, step.want)
		}
	}
}

// sctpInit is the first packet of an association.
func sctpInit(from, to uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = append(b, 0, 0, 0, 0 /* no tag yet */, 0, 0, 0, 0 /* checksum */)
	b = append(b, 1, 0, 0, 20 /* INIT */, 0, 0, 0, 7 /* tag */, 0, 0, 0x10, 0 /* window */, 0, 1, 0, 1 /* streams */, 0, 0, 0, 9)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestSCTPAssociationsEndWithTheirBackend(t *testing.T) {
	l := newFlowLab(t, "nftables")
	sctp := func(u []model.Update) []model.Update {
		for i := range u {
			switch o := u[i].Object.(type) {
			case *model.EndpointSlice:
				o.Ports[0].Protocol = model.SCTP
			case *model.Service:
				o.Ports[0].Protocol = model.SCTP
			}
		}
		return u
	}
	l.apply(t, sctp(append(l.backends(map[string]string{"pod1": "r"}), l.service(nil)))...)
	for i := range dpFamilies {
		a := &dpFamilies[i]
		network := map[bool]string{true: "ip4:132", false: "ip6:132"}[a.udp.Is4()]
		l.client.Run(t, func() error {
			c, err := net.Dial(network, a.udp.String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(sctpInit(flowPort, dpPort))
			return err
		})
		to := netip.AddrPortFrom(a.udp, dpPort)
		nstest.Wait(t, "the association to be tracked, "+a.family, func() error {
			if l.tracked(t, model.SCTP, to) != 1 {
				return errors.New("it is not")
			}
			return nil
		})
	}
	l.apply(t, sctp(l.backends(map[string]string{"pod2": "r"}))...)
	for i := range dpFamilies {
		if n := l.tracked(t, model.SCTP, netip.AddrPortFrom(dpFamilies[i].udp, dpPort)); n != 0 {
			t.Errorf("%s: %d associations with a backend that left", dpFamilies[i].family, n)
		}
	}
}
