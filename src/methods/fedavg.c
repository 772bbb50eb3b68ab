/* fedavg - average A and average B, as if they were ordinary parameters (FedIT).
 * Source: McMahan et al. 2017 (arXiv 1602.05629); Zhang et al. 2023 (FedIT, arXiv 2305.05644);
 * survey section 3.1. A = sum_k p_k A_k,  B = sum_k p_k B_k,  p_k = n_k / sum n_j over those that
 * arrived. The product is not the mean of the products: sum_k p_k B_k A_k - B A = sum_k p_k (B_k -
 * B)(A_k - A). Every hook of this method is the runtime's default. With train.what: full it is full
 * fine-tuning by FedAvg. */
#include "fedlora/fed.h"

const fl_method fl_method_fedavg = {
    .name = "fedavg",
    .title = "average A and B separately (FedIT)",
    .source = "Zhang et al. 2023, arXiv 2305.05644; McMahan et al. 2017, arXiv 1602.05629",
};
