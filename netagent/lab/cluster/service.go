package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// fieldError is a complaint about one field of an object, with the field's path as the manifest
// package understands it.
type fieldError struct {
	path string
	err  error
}

func (e *fieldError) Error() string { return e.path + ": " + e.err.Error() }

func (e *fieldError) Unwrap() error { return e.err }

func complain(path, format string, args ...any) error {
	return &fieldError{path, fmt.Errorf(format, args...)}
}

// admitService does to a new or changed Service what the API server would: it fills in defaults,
// allocates cluster IPs and node ports, keeps those of old (nil when the service is new), and refuses
// what cannot be. s is changed; nothing is allocated before the caller tells the allocator to hold it.
func admitService(s, old *corev1.Service, a *allocator) error {
	if s.Spec.Type == "" {
		s.Spec.Type = corev1.ServiceTypeClusterIP
	}
	if !slices.Contains(serviceTypes, s.Spec.Type) {
		return complain("spec.type", "is %q, expected one of %v", s.Spec.Type, serviceTypes)
	}
	if s.Spec.SessionAffinity == "" {
		s.Spec.SessionAffinity = corev1.ServiceAffinityNone
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP && s.Spec.SessionAffinityConfig == nil {
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
			ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To(corev1.DefaultClientIPServiceAffinitySeconds)}}
	}
	if err := defaultPorts(s); err != nil {
		return err
	}
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		if s.Spec.ExternalName == "" {
			return complain("spec.externalName", "is missing, expected a DNS name")
		}
		return nil
	}
	if len(s.Spec.Ports) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone {
		return complain("spec.ports", "is missing, expected at least one port")
	}
	defaultTraffic(s)
	if old != nil && old.Spec.Type != corev1.ServiceTypeExternalName {
		keepAddresses(s, old)
	}
	if err := assignIPs(s, old, a); err != nil {
		return err
	}
	if err := assignNodePorts(s, old, a); err != nil {
		return err
	}
	return assignIngress(s, old, a)
}

var serviceTypes = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort,
	corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName}

func defaultPorts(s *corev1.Service) error {
	type id struct {
		protocol corev1.Protocol
		port     int32
	}
	names, numbers := map[string]bool{}, map[id]bool{}
	for i := range s.Spec.Ports {
		p, path := &s.Spec.Ports[i], fmt.Sprintf("spec.ports[%d]", i)
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
		switch number := (id{p.Protocol, p.Port}); {
		case p.Port < 1 || p.Port > 65535:
			return complain(path+".port", "is %d, expected 1 to 65535", p.Port)
		case p.TargetPort.Type == intstr.Int && (p.TargetPort.IntVal < 1 || p.TargetPort.IntVal > 65535):
			return complain(path+".targetPort", "is %d, expected 1 to 65535 or the name of a container port", p.TargetPort.IntVal)
		case p.Name == "" && len(s.Spec.Ports) > 1:
			return complain(path+".name", "is missing: a service with several ports must name each")
		case names[p.Name]:
			return complain(path+".name", "%q is the name of an earlier port too", p.Name)
		case numbers[number]:
			return complain(path+".port", "%s port %d is listed twice", p.Protocol, p.Port)
		default:
			names[p.Name], numbers[number] = true, true
		}
	}
	return nil
}

func defaultTraffic(s *corev1.Service) {
	if s.Spec.InternalTrafficPolicy == nil {
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyCluster)
	}
	if (exposed(s) || len(s.Spec.ExternalIPs) > 0) && s.Spec.ExternalTrafficPolicy == "" {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.AllocateLoadBalancerNodePorts == nil {
		s.Spec.AllocateLoadBalancerNodePorts = ptr.To(true)
	}
}

// exposed reports whether the type of the service has node ports.
func exposed(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer
}

// keepAddresses carries allocations over to a changed service, as an update of the object would: a
// manifest that gives no address asks for no change.
func keepAddresses(s, old *corev1.Service) {
	if s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) == 0 {
		s.Spec.ClusterIP = old.Spec.ClusterIP
		s.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		if keep := len(s.Spec.IPFamilies); keep > 0 || singleStack(s) {
			// Fewer families than before give the secondary address back.
			s.Spec.ClusterIPs = s.Spec.ClusterIPs[:min(max(1, keep), len(s.Spec.ClusterIPs))]
		}
	}
	if !exposed(s) || !exposed(old) {
		return
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		for _, o := range old.Spec.Ports {
			if p.NodePort == 0 && p.Port == o.Port && p.Protocol == o.Protocol {
				p.NodePort = o.NodePort
			}
		}
	}
	if s.Spec.HealthCheckNodePort == 0 {
		s.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

func singleStack(s *corev1.Service) bool {
	return ptr.Deref(s.Spec.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack) == corev1.IPFamilyPolicySingleStack
}

// assignIPs settles families, family policy and cluster IPs by the rules of the API server.
func assignIPs(s, old *corev1.Service, a *allocator) error {
	given, err := givenIPs(s)
	if err != nil {
		return err
	}
	headless := s.Spec.ClusterIP == corev1.ClusterIPNone
	families, err := chooseFamilies(s, given, a, headless)
	if err != nil {
		return err
	}
	s.Spec.IPFamilies = families
	if err := unchangedIP(s, old); err != nil {
		return err
	}
	if headless {
		s.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		return nil
	}
	owner := keyOf(s)
	s.Spec.ClusterIPs = nil
	for i, f := range families {
		var ip netip.Addr
		if i < len(given) {
			ip, err = given[i], a.checkIP(given[i], owner)
		} else {
			ip, err = a.pickIP(f, owner)
		}
		if err != nil {
			return &fieldError{"spec.clusterIP", err}
		}
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ip.String())
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	return nil
}

// givenIPs returns the addresses a service asks for and makes spec.clusterIP and the first of
// spec.clusterIPs agree.
func givenIPs(s *corev1.Service) (given []netip.Addr, err error) {
	texts := s.Spec.ClusterIPs
	if len(texts) == 0 && s.Spec.ClusterIP != "" {
		texts = []string{s.Spec.ClusterIP}
	}
	if len(texts) == 0 {
		return nil, nil
	}
	if s.Spec.ClusterIP != "" && s.Spec.ClusterIP != texts[0] {
		return nil, complain("spec.clusterIPs", "begins with %s, expected the same as spec.clusterIP, %s", texts[0], s.Spec.ClusterIP)
	}
	s.Spec.ClusterIP = texts[0]
	if texts[0] == corev1.ClusterIPNone {
		if len(texts) > 1 || exposed(s) {
			return nil, complain("spec.clusterIP", "None does not go with further addresses or type %s", s.Spec.Type)
		}
		return nil, nil
	}
	for _, t := range texts {
		ip, err := netip.ParseAddr(t)
		if err != nil {
			return nil, complain("spec.clusterIP", "is %q, expected an IP address, None, or nothing", t)
		}
		given = append(given, ip.Unmap())
	}
	if len(given) > 2 || (len(given) == 2 && given[0].Is4() == given[1].Is4()) {
		return nil, complain("spec.clusterIPs", "expected at most one address of each family")
	}
	return given, nil
}

// chooseFamilies settles the families of a service, the primary one first, and its policy.
func chooseFamilies(s *corev1.Service, given []netip.Addr, a *allocator, headless bool) ([]corev1.IPFamily, error) {
	dual := len(a.cidrs) > 1
	families := slices.Clone(s.Spec.IPFamilies)
	for i, ip := range given {
		switch f := familyOf(ip); {
		case i >= len(families):
			families = append(families, f)
		case families[i] != f:
			return nil, complain("spec.ipFamilies", "names %s where the address %s stands", families[i], ip)
		}
	}
	for i, f := range families {
		if _, ok := a.cidrOf(f); !ok {
			return nil, complain("spec.ipFamilies", "%s is not a family of this playground", f)
		}
		if slices.Contains(families[:i], f) {
			return nil, complain("spec.ipFamilies", "%s is listed twice", f)
		}
	}
	if s.Spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		// A headless service without selector may list endpoints of any family.
		if len(families) > 1 || (dual && headless && len(s.Spec.Selector) == 0) {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		s.Spec.IPFamilyPolicy = &policy
	}
	if len(families) == 0 {
		families = []corev1.IPFamily{familyOf(a.cidrs[0].Addr())}
	}
	switch *s.Spec.IPFamilyPolicy {
	case corev1.IPFamilyPolicySingleStack:
		if len(families) > 1 {
			return nil, complain("spec.ipFamilyPolicy", "SingleStack does not go with two families")
		}
		return families, nil
	case corev1.IPFamilyPolicyRequireDualStack:
		if !dual {
			return nil, complain("spec.ipFamilyPolicy", "RequireDualStack cannot be had: this playground is %s only", familyOf(a.cidrs[0].Addr()))
		}
	case corev1.IPFamilyPolicyPreferDualStack:
	default:
		return nil, complain("spec.ipFamilyPolicy", "is %q, expected SingleStack, PreferDualStack or RequireDualStack", *s.Spec.IPFamilyPolicy)
	}
	for _, c := range a.cidrs {
		if f := familyOf(c.Addr()); !slices.Contains(families, f) {
			families = append(families, f)
		}
	}
	return families, nil
}

// unchangedIP refuses to move a service to another address, as the API server does: clients may
// have resolved the old one.
func unchangedIP(s, old *corev1.Service) error {
	if old == nil || old.Spec.ClusterIP == "" || s.Spec.ClusterIP == "" || s.Spec.ClusterIP == old.Spec.ClusterIP {
		return nil
	}
	return complain("spec.clusterIP", "may not change from %s to %s: delete the service first", old.Spec.ClusterIP, s.Spec.ClusterIP)
}

// assignNodePorts gives NodePort and LoadBalancer services their node ports and takes them from
// all others.
func assignNodePorts(s, old *corev1.Service, a *allocator) error {
	owner := keyOf(s)
	wanted := exposed(s) && (s.Spec.Type != corev1.ServiceTypeLoadBalancer || *s.Spec.AllocateLoadBalancerNodePorts)
	taken := map[int32]bool{}
	type use struct {
		port     int32
		protocol corev1.Protocol
	}
	used := map[use]bool{}
	for i, p := range s.Spec.Ports {
		path := fmt.Sprintf("spec.ports[%d].nodePort", i)
		switch {
		case p.NodePort == 0:
			continue
		case !exposed(s):
			return complain(path, "is %d, which needs type NodePort or LoadBalancer", p.NodePort)
		case used[use{p.NodePort, p.Protocol}]:
			return complain(path, "%d is used by an earlier %s port too", p.NodePort, p.Protocol)
		}
		if err := a.checkPort(p.NodePort, owner); err != nil {
			return &fieldError{path, err}
		}
		taken[p.NodePort], used[use{p.NodePort, p.Protocol}] = true, true
	}
	local := s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if !local {
		s.Spec.HealthCheckNodePort = 0
	} else if err := assignHealthPort(s, a, taken); err != nil {
		return err
	}
	if !wanted {
		return nil
	}
	byPort := map[int32]int32{} // UDP and TCP of one port number get one node port
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if same, ok := byPort[p.Port]; p.NodePort == 0 && ok && !used[use{same, p.Protocol}] {
			p.NodePort = same
		}
		if p.NodePort == 0 {
			picked, err := a.pickPort(owner, strconv.Itoa(int(p.Port)), taken)
			if err != nil {
				return complain(fmt.Sprintf("spec.ports[%d].nodePort", i), "%w", err)
			}
			p.NodePort = picked
		}
		taken[p.NodePort], used[use{p.NodePort, p.Protocol}], byPort[p.Port] = true, true, p.NodePort
	}
	return nil
}

func assignHealthPort(s *corev1.Service, a *allocator, taken map[int32]bool) (err error) {
	if s.Spec.HealthCheckNodePort == 0 {
		s.Spec.HealthCheckNodePort, err = a.pickPort(keyOf(s), "health", taken)
	} else {
		err = a.checkPort(s.Spec.HealthCheckNodePort, keyOf(s))
	}
	if err != nil {
		return &fieldError{"spec.healthCheckNodePort", err}
	}
	taken[s.Spec.HealthCheckNodePort] = true
	return nil
}

// assignIngress does what a cloud would: it gives a service of type LoadBalancer one address per
// family. Addresses that the manifest's status or spec.loadBalancerIP names are kept.
func assignIngress(s, old *corev1.Service, a *allocator) error {
	ingress := &s.Status.LoadBalancer.Ingress
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || len(*ingress) > 0 {
		return nil
	}
	for _, f := range s.Spec.IPFamilies {
		r, ok := rangeOf(a.balancer, f)
		if !ok {
			continue
		}
		ip := askedIngress(s, old, f)
		if holder, held := a.ips[ip]; held && holder != keyOf(s) {
			return complain("spec.loadBalancerIP", "%s belongs to Service %s already: choose another or leave it out", ip, holder)
		}
		if !ip.IsValid() {
			var err error
			if ip, err = a.pickFrom(r, f, keyOf(s)); err != nil {
				return complain("spec.type", "LoadBalancer: %w", err)
			}
		}
		*ingress = append(*ingress, corev1.LoadBalancerIngress{IP: ip.String(), IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)})
	}
	return nil
}

// askedIngress is the load-balancer address a service names or has had, the zero Addr if none.
func askedIngress(s, old *corev1.Service, f corev1.IPFamily) netip.Addr {
	texts := []string{s.Spec.LoadBalancerIP}
	if old != nil {
		for _, in := range old.Status.LoadBalancer.Ingress {
			texts = append(texts, in.IP)
		}
	}
	for _, t := range texts {
		if ip, err := netip.ParseAddr(t); err == nil && familyOf(ip) == f {
			return ip
		}
	}
	return netip.Addr{}
}
