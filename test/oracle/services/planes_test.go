package services

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilsysctl "k8s.io/component-helpers/node/util/sysctl"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/iptables"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	utiliptables "k8s.io/kubernetes/pkg/util/iptables"

	"github.com/braidnet/braid/internal/kernel/netns/nstest/wire"
	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/netagent/agent"
	"github.com/braidnet/braid/netagent/service"
)

// plane is one program in one mode, on a node of its own.
type plane struct {
	name string
	*wire.Node
	program
}

// program keeps the rules of its node equal to a cluster.
type program interface {
	// apply brings the rules from one cluster, which was applied before, to the next.
	apply(from, to *cluster) error
}

// settings are what an administrator decides, the same for all planes.
type settings struct {
	nodePortAddresses []string // CIDRs; empty: all
	masqueradeAll     bool
	detectLocal       string // a mode of KEP-2450
	loopback          bool   // node ports on 127.0.0.1
}

// newPlanes makes the four, ours first.
func newPlanes(t *testing.T, s settings) []*plane {
	var out []*plane
	for _, make := range []func(*testing.T, settings, string) *plane{newBraid, newKubeProxy} {
		for _, mode := range []string{"nftables", "iptables"} {
			out = append(out, make(t, s, mode))
		}
	}
	return out
}

// kubeProxy is the proxiers of both families.
type kubeProxy struct {
	proxy.Provider
	node   *wire.Node
	errors []string // logged since the last look
	zone   string
}

func newKubeProxy(t *testing.T, s settings, mode string) *plane {
	k := &kubeProxy{node: wire.New(t)}
	log := funcr.New(func(_, text string) {
		if !strings.HasPrefix(text, `"level"`) && !strings.Contains(text, "nfacct") {
			k.errors = append(k.errors, text)
		}
	}, funcr.Options{})
	ctx := klog.NewContext(context.Background(), log)
	detectors, nodeIPs := map[v1.IPFamily]proxyutil.LocalTrafficDetector{}, map[v1.IPFamily]net.IP{}
	for family, is4 := range map[v1.IPFamily]bool{v1.IPv4Protocol: true, v1.IPv6Protocol: false} {
		detectors[family] = s.detector(is4)
		nodeIPs[family] = wire.Own(is4)[0].AsSlice()
	}
	k.node.Run(t, func() (err error) {
		if mode == "nftables" {
			k.Provider, err = nftables.NewDualStackProxier(ctx, time.Hour, 0, s.masqueradeAll, 14, detectors, thisNode, nodeIPs, nil, nil, s.nodePortAddresses, false)
			return err
		}
		tools := map[v1.IPFamily]utiliptables.Interface{}
		for family, tool := range utiliptables.NewBestEffort() {
			tools[family] = unwatched{tool}
		}
		k.Provider, err = iptables.NewDualStackProxier(ctx, tools, utilsysctl.New(), time.Hour, 0, s.masqueradeAll, s.loopback, 14, detectors, thisNode, nodeIPs, nil, nil, s.nodePortAddresses, false)
		return err
	})
	k.OnServiceCIDRsChanged([]string{serviceCIDR(true).String(), serviceCIDR(false).String()})
	k.node.Run(t, func() error {
		k.OnServiceSynced()
		k.OnEndpointSlicesSynced()
		k.errors = nil // it looks for what an earlier run left, and there is none
		return nil
	})
	return &plane{"kube-proxy " + mode, k.node, k}
}

// detector tells pods of the node from others, for kube-proxy.
func (s settings) detector(ipv4 bool) proxyutil.LocalTrafficDetector {
	switch s.detectLocal {
	case "ClusterCIDR":
		return proxyutil.NewDetectLocalByCIDR(clusterCIDR(ipv4).String())
	case "BridgeInterface":
		return proxyutil.NewDetectLocalByBridgeInterface("pods0")
	case "InterfaceNamePrefix":
		return proxyutil.NewDetectLocalByInterfaceNamePrefix("pod")
	}
	return proxyutil.NewDetectLocalByCIDR(podCIDR(ipv4).String())
}

// local is detector for ours.
func (s settings) local() service.Local {
	switch s.detectLocal {
	case "ClusterCIDR":
		return service.Local{Sources: []netip.Prefix{clusterCIDR(true), clusterCIDR(false)}}
	case "BridgeInterface":
		return service.Local{Link: "pods0"}
	case "InterfaceNamePrefix":
		return service.Local{Link: "pod", Prefix: true}
	}
	return service.Local{}
}

// unwatched are tools without the look-out for rules that others flush: it would run on a thread that is not in the namespace.
type unwatched struct{ utiliptables.Interface }

func (unwatched) Monitor(utiliptables.Chain, []utiliptables.Table, func(), time.Duration, <-chan struct{}) {
}

func (k *kubeProxy) failure() error {
	if len(k.errors) == 0 {
		return nil
	}
	err := fmt.Errorf("kube-proxy logged: %s", strings.Join(k.errors, "; "))
	k.errors = nil
	return err
}

func (k *kubeProxy) apply(from, to *cluster) error {
	if k.zone != to.zone {
		k.zone = to.zone
		k.OnTopologyChange(map[string]string{v1.LabelTopologyZone: to.zone})
	}
	each(from.services, to.services, watchedService, func(old, now *v1.Service) {
		k.OnServiceUpdate(old, now)
	})
	each(from.slices, to.slices, watchedSlice, func(old, now *discoveryv1.EndpointSlice) {
		switch {
		case old == nil:
			k.OnEndpointSliceAdd(now)
		case now == nil:
			k.OnEndpointSliceDelete(old)
		default:
			k.OnEndpointSliceUpdate(old, now)
		}
	})
	// It says so once per life, and syncs before it returns; Sync would leave that to a goroutine of its own.
	return k.node.Do(func() error { k.OnServiceSynced(); return k.failure() })
}

// watchedService and watchedSlice are what kube-proxy asks the API server for.
func watchedService(s *v1.Service) bool {
	_, other := s.Labels["service.kubernetes.io/service-proxy-name"]
	return !other && s.Spec.ClusterIP != v1.ClusterIPNone
}

func watchedSlice(s *discoveryv1.EndpointSlice) bool {
	_, headless := s.Labels[v1.IsHeadlessService]
	return !headless
}

// braid is the planner and one renderer.
type braid struct {
	t       *testing.T
	mode    string
	node    *wire.Node
	store   *model.Store
	planner *service.Planner
	plane   service.Dataplane
	zone    string
}

func newBraid(t *testing.T, s settings, mode string) *plane {
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	c := service.Config{Node: thisNode, ExternalIPs: all, MasqueradeAll: s.masqueradeAll, Local: s.local(), Loopback: s.loopback}
	for _, p := range s.nodePortAddresses {
		c.NodePortAddresses = append(c.NodePortAddresses, netip.MustParsePrefix(p))
	}
	b := &braid{t: t, mode: mode, node: wire.New(t), store: model.NewStore(), planner: service.NewPlanner(c)}
	cidrs := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceCIDR(true).String(), serviceCIDR(false).String()}}}
	b.store.Subscribe(b.planner.Apply)
	b.store.Apply([]model.Update{b.update(nil, cidrs), b.update(nil, nodeObject("")), b.update(nil, otherNodeObject())})
	b.node.Run(t, b.restart)
	if s.loopback { // as the agent does where backends are
		for _, device := range []string{"up0", "pods0"} {
			b.node.Sysctl(t, "net/ipv4/conf/"+device+"/route_localnet", "1")
		}
	}
	return &plane{"braid " + mode, b.node, b}
}

// restart is what an agent does that starts anew.
func (b *braid) restart() error {
	if c, ok := b.plane.(interface{ Close() }); ok {
		c.Close()
	}
	var err error
	if b.plane, err = agent.NewDataplane(b.mode, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	b.planner.Flush()
	return b.plane.Replace(b.planner.All())
}

func (b *braid) apply(from, to *cluster) error {
	var updates []model.Update
	if b.zone != to.zone {
		b.zone = to.zone
		updates = append(updates, b.update(nil, nodeObject(to.zone)))
	}
	each(from.services, to.services, func(*v1.Service) bool { return true }, func(old, now *v1.Service) {
		updates = append(updates, b.update(object(old), object(now)))
	})
	each(from.slices, to.slices, func(*discoveryv1.EndpointSlice) bool { return true }, func(old, now *discoveryv1.EndpointSlice) {
		updates = append(updates, b.update(object(old), object(now)))
	})
	b.store.Apply(updates)
	return b.node.Do(func() error {
		if to.restart {
			return b.restart()
		}
		return b.plane.Apply(b.planner.Flush())
	})
}

// frontend returns what the table has for packets to an address and port.
func (b *braid) frontend(dst netip.AddrPort, protocol uint8) (found service.Frontend) {
	all, _ := b.planner.All()
	for _, f := range all {
		node := f.Kind == service.NodePort && f.Addr.Is4() == dst.Addr().Is4() && found.Port == 0
		if (node || f.Addr == dst.Addr()) && f.Port == dst.Port() && uint8(f.Protocol) == protocol {
			found = f
		}
	}
	return found
}

// update is what the agent's sources tell the store of an object, nil when it is gone.
func (b *braid) update(old, now runtime.Object) model.Update {
	b.t.Helper()
	if now == nil {
		ref, _ := source.RefOf(old)
		return model.Delete(ref)
	}
	value, err := source.Convert(now, model.Origin{})
	if err != nil {
		b.t.Fatalf("%T: %v", now, err)
	}
	if value == nil { // an EndpointSlice of names
		ref, _ := source.RefOf(now)
		return model.Delete(ref)
	}
	return model.Set(value)
}

// object keeps a nil pointer from becoming an interface that is not nil.
func object[T any, P interface {
	*T
	runtime.Object
}](p P) runtime.Object {
	if p == nil {
		return nil
	}
	return p
}

// each calls do for every object that is not the same before and after, where those that are not watched do not exist.
func each[T metav1.Object](from, to []T, watched func(T) bool, do func(old, now T)) {
	was := map[string]T{}
	for _, o := range from {
		if watched(o) {
			was[key(o)] = o
		}
	}
	var none T
	for _, o := range to {
		if !watched(o) {
			continue
		}
		old, known := was[key(o)]
		delete(was, key(o))
		if !known {
			do(none, o)
		} else if any(old) != any(o) {
			do(old, o)
		}
	}
	for _, o := range from {
		if _, gone := was[key(o)]; gone {
			do(o, none)
		}
	}
}

func key(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }
