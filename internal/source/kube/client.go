package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
)

// resource is where the API server keeps a kind.
type resource struct {
	gv    schema.GroupVersion
	name  string
	empty runtime.Object // the type that is expected on the wire
}

var resources = map[model.Kind]resource{
	model.KindNamespace:     {corev1.SchemeGroupVersion, "namespaces", &corev1.Namespace{}},
	model.KindServiceImport: {source.MCSGroupVersion(), "serviceimports", &source.ServiceImport{}},
	model.KindNode:          {corev1.SchemeGroupVersion, "nodes", &corev1.Node{}},
	model.KindPod:           {corev1.SchemeGroupVersion, "pods", &corev1.Pod{}},
	model.KindService:       {corev1.SchemeGroupVersion, "services", &corev1.Service{}},
	model.KindEndpointSlice: {discoveryv1.SchemeGroupVersion, "endpointslices", &discoveryv1.EndpointSlice{}},
	model.KindNetworkPolicy: {networkingv1.SchemeGroupVersion, "networkpolicies", &networkingv1.NetworkPolicy{}},
	model.KindServiceCIDR:   {networkingv1.SchemeGroupVersion, "servicecidrs", &networkingv1.ServiceCIDR{}},
}

// codecs knows just the groups that are read, and metadata alone: the clientset of client-go links every one there is.
var codecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme))
	utilruntime.Must(discoveryv1.AddToScheme(scheme))
	utilruntime.Must(networkingv1.AddToScheme(scheme))
	utilruntime.Must(source.AddMCSToScheme(scheme))
	utilruntime.Must(metav1.AddMetaToScheme(scheme))
	return serializer.NewCodecFactory(scheme)
}()

// Config finds the API server: by a kubeconfig file and one of its contexts (empty: its current
// one), or, when both are empty, as a pod of the cluster does.
func Config(kubeconfig, kubeContext string) (*rest.Config, error) {
	if kubeconfig == "" && kubeContext == "" {
		cfg, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, fmt.Errorf("this is not a pod of a cluster (%w); give a kubeconfig file or a folder of manifests", err)
		}
		if err != nil {
			return nil, fmt.Errorf("read the pod's service account: %w; the pod needs automountServiceAccountToken", err)
		}
		return cfg, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: kubeContext}).ClientConfig()
	if err != nil {
		name := kubeconfig
		if name == "" {
			name = "the default place"
		}
		return nil, fmt.Errorf("read kubeconfig at %s, context %q: %w", name, kubeContext, err)
	}
	return cfg, nil
}

// clients holds one REST client per API group; they share one HTTP connection pool and one limit.
type clients map[schema.GroupVersion]*rest.RESTClient

func newClients(cfg *rest.Config, opts Options) (clients, error) {
	cfg = rest.CopyConfig(cfg)
	if cfg.UserAgent == "" {
		cfg.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.NegotiatedSerializer = codecs.WithoutConversion()
	if cfg.RateLimiter == nil && cfg.QPS >= 0 {
		cfg.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(cmp.Or(cfg.QPS, rest.DefaultQPS), cmp.Or(cfg.Burst, rest.DefaultBurst))
	}
	if opts.MaxInflight > 0 {
		cfg.Wrap(atMost(opts.MaxInflight))
	}
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	out := clients{}
	for _, r := range resources {
		if out[r.gv] != nil {
			continue
		}
		c := rest.CopyConfig(cfg)
		c.GroupVersion, c.APIPath = &r.gv, "/apis"
		if r.gv.Group == "" {
			c.APIPath = "/api"
		}
		if out[r.gv], err = rest.RESTClientForConfigAndClient(c, httpClient); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// atMost lets n requests wait for an answer at once; a watch has its answer when it begins.
func atMost(n int) func(http.RoundTripper) http.RoundTripper {
	places := make(chan struct{}, n)
	return func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			select {
			case places <- struct{}{}:
				defer func() { <-places }()
				return next.RoundTrip(r)
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Media types that ask a server for metadata alone (KEP-2334), of a list and of a watch's objects. A
// server that does not know them sends full objects.
const (
	metadataList   = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
	metadataObject = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
)

// request returns a request for the objects of one kind in all namespaces. Of namespaces nothing but
// metadata is read.
func (c clients) request(kind model.Kind, all Options, opts metav1.ListOptions) *rest.Request {
	r, sel := resources[kind], all.Selectors[kind]
	opts.LabelSelector, opts.FieldSelector = sel.Labels, sel.Fields
	if kind == model.KindPod && all.NodeName != "" {
		opts.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", all.NodeName).String()
	}
	req := c[r.gv].Get().Resource(r.name)
	if kind == model.KindNamespace {
		accept := metadataList
		if opts.Watch {
			accept = metadataObject
		}
		req.SetHeader("Accept", accept)
	}
	return req.VersionedParams(&opts, metav1.ParameterCodec)
}

// listWatch returns what lists and watches one kind in all namespaces.
func (c clients) listWatch(kind model.Kind, all Options) (*cache.ListWatch, error) {
	if _, ok := resources[kind]; !ok {
		return nil, fmt.Errorf("read kind %q: there is no such kind, expected one of %v", kind, model.Kinds)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			list, err := c.request(kind, all, opts).Do(ctx).Get()
			if undefined(kind, err) {
				return &source.ServiceImportList{}, nil // the watch will tell; what else there is must not wait
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.Watch = true
			return c.request(kind, all, opts).Watch(ctx)
		},
	}, nil
}

// count asks how many objects of a kind there are, for the price of one of them. It reports false where
// the server does not say, as with selectors.
func (c clients) count(ctx context.Context, kind model.Kind, all Options) (int, bool, error) {
	list, err := c.request(kind, all, metav1.ListOptions{Limit: 1}).SetHeader("Accept", metadataList).Do(ctx).Get()
	if err != nil {
		return 0, false, err
	}
	more, err := meta.ListAccessor(list)
	if err != nil {
		return 0, false, err
	}
	n := meta.LenList(list)
	if rest := more.GetRemainingItemCount(); rest != nil {
		return n + int(*rest), true, nil
	}
	return n, more.GetContinue() == "", nil
}

// versions lists the objects of a kind by name and version alone, page by page.
func (c clients) versions(ctx context.Context, kind model.Kind, all Options) (map[model.Key]uint64, error) {
	out := map[model.Key]uint64{}
	opts := metav1.ListOptions{Limit: 500}
	for {
		list, err := c.request(kind, all, opts).SetHeader("Accept", metadataList).Do(ctx).Get()
		if err != nil {
			return nil, err
		}
		err = meta.EachListItem(list, func(o runtime.Object) error {
			m, err := meta.Accessor(o)
			if err == nil {
				out[source.Ref(kind, m.GetNamespace(), m.GetName()).Key] = version(m.GetResourceVersion())
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		more, err := meta.ListAccessor(list)
		if err != nil {
			return nil, err
		}
		if opts.Continue = more.GetContinue(); opts.Continue == "" {
			return out, nil
		}
	}
}

// version makes a number of a resource version, which is an opaque text to clients: equal texts have
// equal numbers.
func version(text string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(text)) // never fails
	return h.Sum64()
}
