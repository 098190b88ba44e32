package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// Addresses of each node and of who is outside. The node has two of IPv4.
const (
	nodeIP, nodeIP6       = "192.0.2.1", "2001:db8::1"
	otherIP               = "192.0.2.2"
	outsideIP, outsideIP6 = "192.0.2.9", "2001:db8::9"
	ifname                = "eth0"
	outsidePort           = 7
)

// podPorts are what each pod listens on, TCP and UDP.
var podPorts = []int{80, 81}

// forwarding is what makes a node a router: not on when a case begins.
var forwarding = []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}

// plugins are what is built: ours, and the reference.
var plugins = []string{
	"github.com/braidnet/braid/cni",
	"github.com/containernetworking/plugins/plugins/main/bridge", "github.com/containernetworking/plugins/plugins/ipam/host-local",
	"github.com/containernetworking/plugins/plugins/meta/portmap", "github.com/containernetworking/plugins/plugins/meta/bandwidth",
	"github.com/containernetworking/plugins/plugins/meta/tuning", "github.com/containernetworking/plugins/plugins/meta/firewall",
}

// build builds all plugins into a folder.
func build(dir string) error {
	args := append([]string{"build", "-o", dir + "/"}, plugins...)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("build the plugins: %w\n%s", err, out)
	}
	return os.Rename(filepath.Join(dir, "cni"), filepath.Join(dir, "braid"))
}

// plane is a node with pods, and a container runtime.
type plane struct {
	name string
	*nstest.NS
	t         *testing.T
	outside   *nstest.NS
	pods      [podCount]*nstest.NS
	elsewhere *nstest.NS
	dir       string // reservations and the runtime's notes
	cni       *libcni.CNIConfig
	list      *libcni.NetworkConfigList
	results   [podCount]*types100.Result // of the last ADD that went well, until DEL
}

// newPlane makes a node. The namespaces outlive the cases.
func newPlane(t *testing.T, name, bin string) *plane {
	t.Helper()
	p := &plane{name: name, NS: nstest.New(t), t: t, outside: nstest.New(t), elsewhere: nstest.New(t), dir: t.TempDir()}
	p.cni = libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(p.dir, "cache"), nil)
	for _, ns := range []*nstest.NS{p.NS, p.outside} {
		ns.Sysctl(t, "net/ipv6/conf/default/accept_dad", "0") // what is new is of use at once
		unlimited(t, ns)
	}
	nstest.Veth(t, p.NS, "eth0", p.outside, "eth0")
	for ns, list := range map[*nstest.NS][]string{p.NS: {nodeIP + "/24", otherIP + "/24", nodeIP6 + "/64"}, p.outside: {outsideIP + "/24", outsideIP6 + "/64"}} {
		for _, a := range list {
			ns.Exec(t, "ip", "addr", "add", a, "dev", "eth0")
		}
	}
	for _, dst := range []string{"10.0.0.0/8", "172.16.0.0/12"} {
		p.outside.Exec(t, "ip", "route", "add", dst, "via", nodeIP)
	}
	p.outside.Exec(t, "ip", "route", "add", "fd00::/8", "via", nodeIP6)
	serve(t, p.outside, "outside", outsidePort)
	for i := range p.pods {
		p.pods[i] = newPod(t)
		for _, port := range podPorts {
			serve(t, p.pods[i], fmt.Sprintf("pod%d:%d", i, port), port)
		}
	}
	newPodSettings(t, p.elsewhere)
	return p
}

// newPod makes a namespace as runtimes do: nothing up, IPv6 off.
func newPod(t *testing.T) *nstest.NS {
	ns := nstest.New(t)
	newPodSettings(t, ns)
	unlimited(t, ns)
	return ns
}

func newPodSettings(t *testing.T, ns *nstest.NS) {
	ns.Exec(t, "ip", "link", "set", "lo", "down")
	ns.Sysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
	ns.Sysctl(t, "net/ipv6/conf/default/disable_ipv6", "1")
}

func containerID(pod int) string { return fmt.Sprintf("%064d", pod+1) }

func (p *plane) dataDir() string { return filepath.Join(p.dir, "data") }

// unlimited lets the kernel say every time that nobody listens on a port of UDP; else it does so
// a few times a second.
func unlimited(t *testing.T, ns *nstest.NS) {
	ns.Sysctl(t, "net/ipv4/icmp_ratelimit", "0")
	ns.Sysctl(t, "net/ipv6/icmp/ratelimit", "0")
}

// use reads a configuration.
func (p *plane) use(conf []byte) {
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", p.name, err, conf)
	}
	p.list = list
}

// runtimeConf is what the runtime says about a pod.
func (p *plane) runtimeConf(n *network, pod int) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: containerID(pod), NetNS: p.pods[pod].Path(), IfName: ifname,
		Args: append([][2]string(nil), n.Pods[pod].Args...), CapabilityArgs: n.Pods[pod].Caps}
}

// do makes one call and returns its result and error.
func (p *plane) do(n *network, s step) (result *types100.Result, err error) {
	ctx, rt := context.Background(), p.runtimeConf(n, s.Pod)
	remove := func() error {
		err := p.cni.DelNetworkList(ctx, p.list, rt)
		if err == nil {
			p.results[s.Pod] = nil
		}
		return err
	}
	err = p.Do(func() (err error) {
		switch s.Verb {
		case addElsewhere:
			rt.NetNS = p.elsewhere.Path()
			fallthrough
		case add:
			result, err = p.add(ctx, rt)
			if err == nil && s.Verb == add {
				p.results[s.Pod] = result
			}
			return err
		case check:
			return p.cni.CheckNetworkList(ctx, p.list, rt)
		case delNowhere:
			rt.NetNS = ""
			return remove()
		case delGone:
			rt.NetNS = "/run/netns/none-such"
			return remove()
		case del:
			return remove()
		case gc:
			return p.gc(ctx, s.Keep)
		case status:
			return p.cni.GetStatusNetworkList(ctx, p.list)
		}
		return fmt.Errorf("%q is no verb", s.Verb)
	})
	return result, err
}

func (p *plane) add(ctx context.Context, rt *libcni.RuntimeConf) (*types100.Result, error) {
	r, err := p.cni.AddNetworkList(ctx, p.list, rt)
	if err != nil {
		return nil, err
	}
	return types100.GetResult(r)
}

// gc forgets the runtime's notes first, as one that lost them would have: what it still knows, libcni deletes
// by DEL.
func (p *plane) gc(ctx context.Context, keep []int) error {
	if err := os.RemoveAll(filepath.Join(p.dir, "cache")); err != nil {
		return err
	}
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, i := range keep {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: containerID(i), IfName: ifname})
	}
	return p.cni.GCNetworkList(ctx, p.list, args)
}

// codeOf is the code of an error; 0 means well.
func codeOf(err error) uint {
	var e *types.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Code
	}
	return types.ErrInternal
}

// end removes all pods, as a runtime does, and then by force what is left.
func (p *plane) end(n *network) {
	p.t.Helper()
	failed := false
	for i := range p.pods {
		_, err := p.do(n, step{Verb: del, Pod: i})
		failed = failed || err != nil
		if err != nil && p.name != "reference" && n.Wrong == "" {
			p.t.Errorf("%s: the last DEL: %v\n%s", p.name, err, n)
		}
	}
	if p.name == "ours" && !failed { // another plugin of the chain may, before ours is asked
		p.mustBeEmpty(n)
	}
	for _, ns := range append(p.pods[:], p.elsewhere) {
		p.wipe(ns)
		newPodSettings(p.t, ns)
	}
	p.wipe(p.NS)
	for _, key := range forwarding {
		p.Sysctl(p.t, key, "0")
	}
	p.Exec(p.t, "nft", "flush", "ruleset")
	if err := errors.Join(os.RemoveAll(p.dataDir()), os.RemoveAll(filepath.Join(p.dir, "cache"))); err != nil {
		p.t.Fatal(err)
	}
	p.results = [podCount]*types100.Result{}
	p.Run(p.t, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// mustBeEmpty fails the test when our plugin has left anything of a pod.
func (p *plane) mustBeEmpty(n *network) {
	for name := range p.disk() {
		if !strings.HasPrefix(name, "last_reserved_ip.") && name != "lock" {
			p.t.Errorf("after DEL of all pods a reservation is left, %s\n%s", name, n)
		}
	}
	out := p.Exec(p.t, "ip", "-o", "link") + p.Exec(p.t, "nft", "list", "ruleset")
	if strings.Contains(out, ": brd") || strings.Contains(out, `comment "brd`) {
		p.t.Errorf("after DEL of all pods something of them is left:\n%s\n%s", out, n)
	}
}

// wipe removes all links but loopback and the one to the outside.
func (p *plane) wipe(ns *nstest.NS) {
	ns.Run(p.t, func() error {
		list, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range list {
			if l.Type() == "device" || l.Attrs().Name == "eth0" && ns == p.NS || strings.HasPrefix(l.Attrs().Name, "tunl") {
				continue
			}
			var gone netlink.LinkNotFoundError
			if err := netlink.LinkDel(l); err != nil && !errors.As(err, &gone) && !strings.Contains(err.Error(), "no such device") {
				return fmt.Errorf("remove %s: %w", l.Attrs().Name, err)
			}
		}
		return nil
	})
}

// disk is the folder of reservations: name and content of each file. Ours has a folder in it, which host-local passes over.
func (p *plane) disk() map[string]string {
	out := map[string]string{}
	files, _ := filepath.Glob(filepath.Join(p.dataDir(), "net", "*"))
	for _, f := range files {
		if i, err := os.Stat(f); err == nil && i.IsDir() {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			p.t.Fatal(err)
		}
		out[filepath.Base(f)] = string(b)
	}
	return out
}

// addressOf is the address of a pod in one family, if it has one.
func (p *plane) addressOf(pod int, six bool) (netip.Addr, bool) {
	if p.results[pod] == nil {
		return netip.Addr{}, false
	}
	for _, ip := range p.results[pod].IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok && a.Unmap().Is4() != six {
			return a.Unmap(), true
		}
	}
	return netip.Addr{}, false
}
